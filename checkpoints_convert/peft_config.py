"""Is an adapter_config.json one of plain LoRA (arXiv:2106.09685) or rsLoRA (arXiv:2312.03732)?

PEFT's LoRA has grown many variants, and most are told by a key of this file alone: the tensors look the same. So what
is not known to leave the sum W + scale·B·A as it is gets refused, that of later versions of PEFT too. Considered is
every key that PEFT 0.21.2 writes.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from etils import epath

from checkpoints_convert.sources import ConversionError
from stepaudio_jax.inputs import InputError, flag_problem, integer_problem, number_problem, one_line, read_object
from stepaudio_jax.models.lora import LIMITS

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

MISSING = "expected a positive number, found None"
READ = {
    "r": lambda value: MISSING if value is None else integer_problem(value, *LIMITS["rank"]),
    "lora_alpha": lambda value: MISSING if value is None else number_problem(value, *LIMITS["alpha"]),
    "use_rslora": lambda value: None if value is None else flag_problem(value),
}
"""What makes the scale: what is wrong with a value."""

HARMLESS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "ensure_weight_tying",  # of embeddings, whose adapters have names that are refused
        "exclude_modules",  # which layers have adapters is told by the tensors, as with the next four
        "layers_pattern",
        "layers_to_transform",
        "target_modules",
        "inference_mode",
        "lora_dropout",  # of training only
        "megatron_core",  # of use beside megatron_config only
        "peft_version",
        "qalora_group_size",  # of use beside use_qalora only
        "revision",
        "runtime_config",  # how PEFT holds weights in memory
        "task_type",
    }
)
"""What does not change the sum, whatever its value."""

EXPECTED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),
}
"""What has harmless values beside null, false and empty ones. These starts of A and B leave W as it is."""

MERGE = (
    "merge it into its base with PEFT (merge_and_unload), save that with save_pretrained, and convert the folder with "
    "from-hf"
)
CONVERT = (
    "save it from PEFT as plain LoRA: save_pretrained(…, path_initial_model_for_weight_conversion=…) with the adapter "
    f"as it was before training; or {MERGE}"
)
STARTS = {
    "pissa": ("PiSSA takes the principal part of the base's weights out of them and into the adapter", CONVERT),
    "olora": ("OLoRA changes the base's weights by what the adapter starts with", CONVERT),
    "corda": ("CorDA takes a part of the base's weights out of them and into the adapter", CONVERT),
    "lora_ga": ("LoRA-GA changes the base's weights by what the adapter starts with", CONVERT),
    "loftq": ("LoftQ's adapter belongs to a quantised base, not to these weights", MERGE),
    "eva": ("EVA gives each layer its own rank and scale", MERGE),
}
"""Of init_lora_weights: why a value is refused, and what to do."""
REASONS = {
    "alora_invocation_tokens": (
        "aLoRA acts only on tokens after its invocation tokens, which no merged weights can",
        "run it with PEFT",
    ),
    "use_dora": ("DoRA scales the columns of the sum besides", MERGE),
    "use_qalora": ("QALoRA pools the layer's inputs before A", "run it with PEFT"),
    "use_bdlora": ("BD-LoRA stores the blocks of block-diagonal matrices", MERGE),
    "loftq_config": STARTS["loftq"],
    "corda_config": STARTS["corda"],
    "lora_ga_config": STARTS["lora_ga"],
    "eva_config": STARTS["eva"],
    "kasa_config": ("KaSA changes the base's weights and scales between A and B", MERGE),
    "monteclora_config": ("MonteCLoRA samples its weights", MERGE),
    "velora_config": ("VeLoRA has a layer of its own", MERGE),
    "arrow_config": ("Arrow chooses between several adapters by the input", "run it with PEFT"),
    "megatron_config": ("the adapter is one of Megatron's parallel layers", MERGE),
    "rank_pattern": ("layers have ranks of their own, ours have one", MERGE),
    "alpha_pattern": ("layers have scales of their own, ours have one", MERGE),
    "fan_in_fan_out": ("the base's matrices would lie the other way round, which Qwen2's do not", "set it to false"),
    "lora_bias": ("B has a bias, ours has none", MERGE),
    "bias": ("biases of the base were trained too", MERGE),
    "modules_to_save": ("whole modules were trained besides adapters", MERGE),
    "trainable_token_indices": ("rows of the embedding were trained too", MERGE),
    "target_parameters": ("adapters of parameters that are no linear layers", MERGE),
    "layer_replication": ("the base's layers are repeated into another model", MERGE),
    "peft_type": ("only LoRA adapters are read", MERGE),
}
"""Why a value other than null, false or empty is refused, and what to do."""


def read_config(path: epath.Path) -> Mapping[str, Any]:
    """An adapter_config.json of plain LoRA or rsLoRA.

    Raises:
      ConversionError: all that keeps it from being one, each with the reason and what to do.
    """
    try:
        values = read_object(path)
    except FileNotFoundError:
        raise ConversionError(f"{path}: no such file; a PEFT folder has {CONFIG} and {WEIGHTS}") from None
    except InputError as error:
        raise ConversionError(str(error)) from None
    problems = [problem for key, value in values.items() if (problem := _problem(key, value)) is not None]
    problems += [f"{key}: {problem}" for key, check in READ.items() if (problem := check(values.get(key))) is not None]
    if "peft_type" not in values:
        problems.append("peft_type: missing; expected 'LORA'")
    if problems:
        raise ConversionError(*(f"{path}: {problem}" for problem in problems))
    return values


def _problem(key: str, value: Any) -> str | None:
    if key in READ or key in HARMLESS:
        return None
    expected = EXPECTED.get(key, (False, None, "", [], {}))
    if any(value == harmless and type(value) is type(harmless) for harmless in expected):
        return None
    reason, remedy = REASONS.get(key, ("not known here, and may change what the adapter computes", MERGE))
    if key == "init_lora_weights":
        start = next((name for name in STARTS if isinstance(value, str) and value.lower().startswith(name)), "")
        reason, remedy = STARTS.get(start, ("a start not known to leave the base's weights as they are", CONVERT))
    empty = type(value)() if isinstance(value, bool | list | dict) else None
    default = expected[0] if key in EXPECTED else empty
    return one_line(f"{key[:100]} is {reprlib.repr(value)}; expected {default!r}: {reason}; {remedy}")
