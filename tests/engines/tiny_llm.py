"""Makes a language model of 8 MB that vLLM serves and that says what is written here: `python tiny_llm.py FOLDER`.

It is a Llama like any other, with random attention and random layers, whose output is set rather than trained: each
token of an answer is followed by the next one. A token is a character, so an answer takes some hundred steps, and can
be stopped, killed or closed in its middle. The chat template begins the story where the last message asks for one, else
the answer. A chat that ends with sentences of the answer is gone on with: the last word of each is a token, which is
followed by the next sentence.

Where tools are offered and the caller speaks of an order, it chooses one, in the way of Hermes and Qwen; where it is to
write JSON alone, in JSON, or none. Where a tool has answered, it says what the tool told. Tokens of choices are longer
than a character, and as they are written, since servers that hold a model to a schema compare them with it.

Run by the interpreter of vLLM's environment.
"""

import json
import string
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import BPE

# Whole sentences without a number, a date or a promise: what an agent may say of its own accord.
ANSWER = (
    "Walking in the mountains is a fine way to forget the noise of the city for a while.",
    "A good pair of boots matters more than anything else that hangs on the wall of a shop.",
    "Wear them at home first, on the stairs and in the garden, until the leather has become soft.",
    "Light clothes in several layers are better than a single thick coat, because the weather turns quickly up there.",
    "Tell somebody at home which path was chosen, and where the evening is to be spent.",
    "Carry water in summer.",
    "Rest below the summit.",
    "Then look at the valley.",
)
STORY = (
    "Far away behind the hills there lived a shepherd who knew every stone of his mountain by name. ",
    "Each morning he climbed up with his dog to look whether the lake was still there, and it always was. ",
    "People in the village laughed about it, but secretly they were glad that someone looked. ",
)
CHOSEN = "1042"
TOLD = ("Your parcel is on its way.", "It left the warehouse in good shape.")
SPEAKERS = ("system", "user", "assistant", "tool")
STORY_BEGINS, ANSWER_BEGINS, END, UNKNOWN = "<|story|>", "<|answer|>", "<|end|>", "<|unknown|>"
CALL_BEGINS, CHOICE_BEGINS, NONE_BEGINS, TOLD_BEGINS = "<|call|>", "<|choice|>", "<|none|>", "<|told|>"
CONTEXT_TOKENS = 8192

# Each token follows another one, so that none may be in two of them.
_CALL = (
    *("<tool_call>", '\n{"na', 'me": "get_', 'order", "argu', 'ments": {"order_num', 'ber": "', CHOSEN, '"}', "}\n"),
    "</tool_call>",
)
_CHOICE = ('{"cho', 'ice": {"to', 'ol": "get', '_order", "ar', 'guments": {"order_', 'number": ', f'"{CHOSEN}"', "}}}")
_NONE = ('{"ch', 'oice": {"t', 'ool": n', "ull}}")
_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% set last = messages[-1]['content'] | lower %}"
    "{% if not add_generation_prompt %}"
    "{% elif 'write json alone' in (messages[0]['content'] | lower) %}"
    "{{ '<|choice|>' if 'order' in last and 'answered: ' not in last else '<|none|>' }}"
    "{% elif messages[-1]['role'] == 'tool' or 'answered: ' in last %}{{ '<|told|>' }}"
    "{% elif tools and 'order' in last %}{{ '<|call|>' }}"
    "{% elif 'story' in last %}{{ '<|story|>' }}"
    "{% else %}{{ '<|answer|>' }}{% endif %}"
)
_HIDDEN, _LAYERS, _HEADS, _HEAD_SIZE, _INNER = 256, 2, 4, 64, 512
_SURE = 4.0  # the right token's logit is 64, another's about 16: no temperature in use picks another
Weights = NDArray[np.float32]


def make(folder: Path) -> None:
    """Writes the model as a folder that vLLM and transformers load."""
    from safetensors.numpy import save_file  # of that environment alone; what is said above is for tests, too

    folder.mkdir(parents=True, exist_ok=True)
    said, following = _vocabulary()
    _write_tokenizer(folder, said)
    (folder / "config.json").write_text(json.dumps(_config(said), indent=1))
    save_file(_weights(len(said), following), folder / "model.safetensors", {"format": "pt"})


def _last_word(sentence: str) -> str:
    return sentence[sentence.rindex(" ") :]


def _vocabulary() -> tuple[dict[str, int], dict[int, int]]:
    """Ids by token, and which token follows which. A character of an answer is a token of its own: `e~17`."""
    begins = (STORY_BEGINS, ANSWER_BEGINS, CALL_BEGINS, CHOICE_BEGINS, NONE_BEGINS, TOLD_BEGINS)
    tokens = [UNKNOWN, END, *begins, *(f"<|{speaker}|>" for speaker in SPEAKERS)]
    tokens += sorted({*string.printable, *"".join(STORY + ANSWER + TOLD)})
    following: dict[int, int] = {}

    def say(text: str, after: int) -> int:
        """Lets a text follow a token; returns its last one."""
        return write([f"{character}~{len(tokens) + number}" for number, character in enumerate(text)], after)

    def write(texts: Iterable[str], after: int) -> int:
        """Lets tokens follow a token, as they are; returns the last one."""
        for text in texts:
            following[after] = after = len(tokens)
            tokens.append(text)
        return after

    last = say("".join(STORY), tokens.index(STORY_BEGINS))
    following[last] = following[tokens.index(STORY_BEGINS)]  # it goes round for as long as it may
    last, ends = tokens.index(ANSWER_BEGINS), []
    for number, sentence in enumerate(ANSWER):
        last = say(f" {sentence}" if number else sentence, last)
        ends.append(last)
    following[last] = tokens.index(END)
    for last in (
        say(" ".join(TOLD), tokens.index(TOLD_BEGINS)),
        write(_CALL, tokens.index(CALL_BEGINS)),
        write(_CHOICE, tokens.index(CHOICE_BEGINS)),
        write(_NONE, tokens.index(NONE_BEGINS)),
    ):
        following[last] = tokens.index(END)
    for sentence, end in zip(ANSWER, ends, strict=True):
        following[len(tokens)] = following[end]
        tokens.append(_last_word(sentence))
    return {token: number for number, token in enumerate(tokens)}, following


def _write_tokenizer(folder: Path, said: dict[str, int]) -> None:
    tokenizer = Tokenizer(BPE(vocab=said, merges=[], unk_token=UNKNOWN))
    tokenizer.decoder = decoders.Sequence([decoders.Replace(Regex(r"~\d+"), ""), decoders.Fuse()])
    special = [token for token in said if token.startswith("<|")]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([_last_word(sentence) for sentence in ANSWER])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNKNOWN,
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT_TOKENS,
        "chat_template": _TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def _config(said: dict[str, int]) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": _HIDDEN,
        "intermediate_size": _INNER,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS,
        "head_dim": _HEAD_SIZE,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": CONTEXT_TOKENS,
        "vocab_size": len(said),
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": said[END],
        "torch_dtype": "float32",
    }


def _weights(tokens: int, following: dict[int, int]) -> dict[str, Weights]:
    """Each token's vector has length 16, to which the random layers add about a tenth."""
    random = np.random.default_rng(7)

    def noise(rows: int, columns: int) -> Weights:
        return random.normal(0.0, 0.02, (rows, columns)).astype(np.float32)

    vectors = random.normal(0.0, 1.0, (tokens, _HIDDEN)).astype(np.float32)
    vectors *= np.sqrt(_HIDDEN) / np.linalg.norm(vectors, axis=1, keepdims=True)
    head = np.zeros((tokens, _HIDDEN), np.float32)
    for token, after in following.items():
        head[after] += _SURE / np.sqrt(_HIDDEN) * vectors[token]
    weights = {"model.embed_tokens.weight": vectors, "lm_head.weight": head}
    for layer in range(_LAYERS):
        name = f"model.layers.{layer}."
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weights[f"{name}self_attn.{part}.weight"] = noise(_HIDDEN, _HIDDEN)
        weights[f"{name}mlp.gate_proj.weight"] = noise(_INNER, _HIDDEN)
        weights[f"{name}mlp.up_proj.weight"] = noise(_INNER, _HIDDEN)
        weights[f"{name}mlp.down_proj.weight"] = noise(_HIDDEN, _INNER)
        for part in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{name}{part}.weight"] = np.ones(_HIDDEN, np.float32)
    weights["model.norm.weight"] = np.ones(_HIDDEN, np.float32)
    return weights


if __name__ == "__main__":
    make(Path(sys.argv[1]))
