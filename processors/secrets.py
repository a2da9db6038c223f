"""Secrets for other systems: from the environment, or from files as container platforms mount them."""

import os
from collections.abc import Mapping
from pathlib import Path

PREFIX = "TRUNKLINE_SECRET_"
FOLDER = Path("/run/secrets")


def secrets_of(environment: Mapping[str, str] | None = None, folder: Path = FOLDER) -> dict[str, str]:
    """By name: `TRUNKLINE_SECRET_CRM_TOKEN`, or the file `/run/secrets/trunkline_secret_crm_token`, is `crm_token`.

    The environment goes first; blanks around a file's text are not part of the secret.
    """
    environment = os.environ if environment is None else environment
    found = {}
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith(PREFIX.lower()) and path.is_file():
                found[path.name.removeprefix(PREFIX.lower())] = path.read_text(encoding="utf-8").strip()
    return found | {
        name.removeprefix(PREFIX).lower(): value for name, value in environment.items() if name.startswith(PREFIX)
    }
