"""Makes smollm2_greedy.json and tiny_logits.json with transformers, which shares no code with this project.

Run by hand, from the repository root, with an interpreter that has torch and transformers; it takes minutes:

    PYTHONPATH=tests python tests/golden/make_generation_goldens.py MODEL_DIR

MODEL_DIR is SmolLM2-135M-Instruct as a Hugging Face directory, stored in bfloat16.

smollm2_greedy.json: the greedy continuation of each prompt in float32 and the margin of each token, that is,
its logit less the runner-up's. End-of-text is a token like any other: it may appear, and generation goes on
behind it. The index where bfloat16 first picks another token is recorded for information.

tiny_logits.json: some float32 logits of some tiny random models, with all the digits that float32 has.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from reference.numpy_decoder import weights_digest
from reference.tiny_models import TINY_SPECS, write_tiny_model

NUM_TOKENS = 64
MIN_MARGIN = 1e-3  # what correct float32 implementations may differ by: replace a prompt that comes closer
TINY_NAMES = ("llama_gqa_tied", "llama_hidden_576", "llama_wide_heads", "qwen2_f16")
TINY_NUM_TOKENS = 40
TINY_ROWS = (0, 1, 13, 39)
TINY_NUM_COLUMNS = 32

PASSAGE = """\
The lighthouse at Carrow Point was built in 1847, after the brig Adelaide struck the reef in a November
gale and went down with all but three of her crew. For the first forty years its lamp burned whale oil,
then paraffin, and the keepers climbed the hundred and twelve steps twice every night to trim the wicks
and wind the clockwork that turned the lens. The last of them, a quiet man named Tobias Hale, lived there
with his daughter Ruth, who learned to read from the shipping almanac and could name every vessel on the
horizon by the cut of her sails.

In the winter of 1912 the supply boat did not come for seven weeks. Hale rationed the flour, then the
oil. When the oil ran low he let the lamp burn only from dusk until the tide turned, reasoning that no
captain would dare the channel at low water. On the nineteenth of January he was wrong. A collier, the
Margaret Dunn, two days behind her time and short of coal herself, came round the point in the dark with
nothing to steer by. It was Ruth who heard her engines. She carried every mattress in the house down to
the shingle, soaked them in the last of the paraffin, and set them alight one after another, so that the
flames made a line along the shore.

The collier's mate later told the inquiry that he had taken the fires for a village, and had turned away
from it only because he knew of no village there. The court commended the girl and reprimanded the
father, and the following spring the lamp was converted to acetylene. Today the light is automatic, and
the house belongs to a trust that lets it to visitors in the summer. On the wall of the kitchen hangs a
page from the almanac with one name underlined.
"""

CODE = '''\
import heapq
from collections import defaultdict


def shortest_paths(edges, source):
    """Dijkstra's algorithm: distances from source to every node that can be reached."""
    graph = defaultdict(list)
    for start, end, weight in edges:
        if weight < 0:
            raise ValueError(f"edge {start}->{end} has a negative weight")
        graph[start].append((end, weight))

    distances = {}
    queue = [(0, source)]
    while queue:
        distance, node = heapq.heappop(queue)
        if node in distances:
            continue
        distances[node] = distance
        for neighbour, weight in graph[node]:
            if neighbour not in distances:
                heapq.heappush(queue, (distance + weight, neighbour))
    return distances


def path_to(previous, node):
    path = []
    while node is not None:
        path.append(node)
        node = previous.get(node)
    return path[::-1]


def test_shortest_paths():
    edges = [("a", "b", 7), ("a", "c", 3), ("c", "b", 1), ("b", "d", 2), ("c", "d", 8)]
    assert shortest_paths(edges, "a") == {'''

TEXT_PROMPTS = {
    "one token": "The",
    "sentence": "The capital of France is",
    "story opening": "Once upon a time, in a village at the foot of a mountain, there lived a clockmaker who",
    "dialogue": '"You are late," said the conductor.\n\n"I know," she replied, "but',
    "python": "def fibonacci(n: int) -> int:\n    ",
    "c++": "#include <vector>\n\n// Returns the median.\ndouble median(std::vector<double> values) {\n",
    "sql and json": '-- users.json: [{"id": 1, "name": "Ada"}, {"id": 2, "name": "Alan"}]\nSELECT ',
    "arithmetic": "12 + 7 = 19\n35 + 48 = 83\n127 + 256 = 383\n64 + 19 =",
    "algebra": r"To solve the equation $x^2 - 5x + 6 = 0$, we factor the left-hand side as \(",
    "chinese": "人工智能是计算机科学的一个分支，",
    "japanese and korean": "日本の首都は東京です。대한민국의 수도는 서울입니다. 日本の",
    "accents and cyrillic": "Où est la bibliothèque ? Где находится библиотека? Wo ist die Bücherei?",
    "emoji": "The best day at the beach 🏖️🌊 with my family 👨\u200d👩\u200d👧\u200d👦 and then 🎉",
    "numbered list": "How to sleep well:\n\n1. Keep a regular schedule.\n2. Avoid caffeine.\n3.",
    "markdown table": "| Planet | Moons |\n|---|---|\n| Earth | 1 |\n| Mars | 2 |\n| Jupiter |",
    "whitespace": "  \n\n\t  two   spaces    and\ttabs \r\n\n  ",
    "upper case": "WARNING: DO NOT OPEN THIS DOOR WHILE THE",
    "repeated": "the cat sat on the mat. " * 60,
    "long passage": PASSAGE + "\nQuestion: Why did the collier turn away from the shore?\nAnswer:",
    "long code": CODE,
    "long sequence": ", ".join(str(n * n) for n in range(1, 70)) + ",",
}

CHAT_PROMPTS: Mapping[str, list[dict[str, str]]] = {
    "chat": [{"role": "user", "content": "What is gravity? Answer in two sentences."}],
    "chat with system": [
        {"role": "system", "content": "You are a pirate. Every answer is short and rhymes."},
        {"role": "user", "content": "How do I bake bread? 🍞"},
    ],
    "long chat": [
        {"role": "user", "content": "Read this and wait for my question.\n\n" + PASSAGE},
        {"role": "assistant", "content": "I have read it. What would you like to know?"},
        {"role": "user", "content": "List the people and ships that are named in it."},
    ],
}


def load(directory: Path, dtype: torch.dtype) -> Any:
    """The model, its stored weights converted to `dtype`."""
    auto = transformers.AutoModelForCausalLM
    return auto.from_pretrained(directory, dtype=dtype, attn_implementation="eager")


def digest(model: Any) -> str:
    """The digest of the weights as transformers read them, which also checks the tests' own reader."""
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    state = model.state_dict()
    return weights_digest({name: state[name].double().numpy() for name in state.keys() - tied})


def greedy(model: Any, prompt_ids: Sequence[int]) -> tuple[list[int], list[float]]:
    """Greedy tokens and their margins, by the definition: no generation config has a say."""
    step, cache = torch.tensor([prompt_ids]), transformers.DynamicCache(config=model.config)
    tokens: list[int] = []
    margins: list[float] = []
    for _ in range(NUM_TOKENS):
        top = model(step, past_key_values=cache, logits_to_keep=1).logits[0, -1].float().topk(2)
        tokens.append(int(top.indices[0]))
        margins.append(float(top.values[0] - top.values[1]))
        step = top.indices[None, :1]
    return tokens, margins


def smollm2_goldens(directory: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Facts about the model, and one record for each prompt."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    chats = {
        name: tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for name, messages in CHAT_PROMPTS.items()
    }
    model, model_bf16 = load(directory, torch.float32), load(directory, torch.bfloat16)
    records = []
    for name, text in (TEXT_PROMPTS | chats).items():
        prompt_ids = tokenizer(text, add_special_tokens=False).input_ids
        tokens, margins = greedy(model, prompt_ids)
        if min(margins) < MIN_MARGIN:
            raise ValueError(f"prompt '{name}': expected margins over {MIN_MARGIN}, found {min(margins)}")
        tokens_bf16, _ = greedy(model_bf16, prompt_ids)
        same = [a == b for a, b in zip(tokens, tokens_bf16, strict=True)]
        records.append(
            {
                "name": name,
                "prompt": text,
                "prompt_ids": prompt_ids,
                "output_ids": tokens,
                "margins": [float(f"{margin:.6g}") for margin in margins],
                "bf16_first_difference": None if all(same) else same.index(False),
            }
        )
    return {"model": "smollm2-135m-instruct", "weights_sha256": digest(model)}, records


def tiny_goldens(name: str) -> dict[str, Any]:
    """Some logits of the tiny model `name`, rows and columns spread over all there are."""
    spec = TINY_SPECS[name]
    token_ids = np.random.RandomState(0).randint(0, spec.vocab, TINY_NUM_TOKENS).tolist()
    columns = np.linspace(0, spec.vocab - 1, TINY_NUM_COLUMNS).astype(int).tolist()
    with tempfile.TemporaryDirectory() as temporary:
        model = load(write_tiny_model(Path(temporary), spec), torch.float32)
        logits = model(torch.tensor([token_ids])).logits[0].numpy()[np.ix_(TINY_ROWS, columns)]
    return {
        "name": name,
        "weights_sha256": digest(model),
        "token_ids": token_ids,
        "rows": TINY_ROWS,
        "columns": columns,
        "logits": [[float(f"{logit:.9g}") for logit in row] for row in logits],
    }


def write(path: Path, facts: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
    """Writes JSON with one record a line, so that a difference between versions can be read."""
    made_by = {
        "script": Path(__file__).name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }
    head = json.dumps({"made_by": made_by, **facts}, indent=2).removesuffix("\n}")
    lines = ",\n    ".join(json.dumps(record, ensure_ascii=False) for record in records)
    path.write_text(f'{head},\n  "records": [\n    {lines}\n  ]\n}}\n', encoding="utf-8")


@torch.inference_mode()
def main() -> None:
    """Writes both files beside this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model_dir", type=Path, help="SmolLM2-135M-Instruct, a Hugging Face directory")
    directory = parser.parse_args().model_dir
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the order of additions does not depend on the machine's number of cores
    target = Path(__file__).parent
    write(target / "tiny_logits.json", {}, [tiny_goldens(name) for name in TINY_NAMES])
    write(target / "smollm2_greedy.json", *smollm2_goldens(directory))


if __name__ == "__main__":
    main()
