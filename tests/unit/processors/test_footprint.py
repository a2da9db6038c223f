"""Which device an engine's process asks for its memory, and that one without any tells nothing."""

import pytest

from processors.footprint import device_of, resident_bytes, visible


@pytest.mark.parametrize(
    ("ordinal", "listed", "which"),
    [
        (1, None, 1),
        (0, "3", 3),
        (1, "3, 5", 5),
        (0, "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"),
        (0, "MIG-GPU-8932f937/1/2", "MIG-GPU-8932f937/1/2"),
        (2, "3,5", 2),  # CUDA itself has no such device
    ],
)
def test_the_device_is_the_one_that_cuda_means(ordinal: int, listed: str | None, which: int | str) -> None:
    assert visible(ordinal, {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}) == which


@pytest.mark.parametrize("name", ["cpu", "cpu:0"])
def test_a_processor_has_no_memory_of_its_own(name: str) -> None:
    assert device_of(name) is None


def test_a_process_has_some() -> None:
    assert resident_bytes() > 1 << 20
