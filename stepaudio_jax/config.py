"""Model sizes, as frozen dataclasses that also read the released config.json files.

Field names are the ones the released files use, so a config can be compared with them line by
line. Three shapes of config.json exist and all are read by `StepAudioConfig.from_hf`:

  nested  `StepAudio2ForCausalLM`: `text_config` and `audio_encoder_config`
  flat    `StepAudioForCausalLMV2`: decoder keys at the top level beside `audio_encoder_config`
  parts   `Qwen2ForCausalLM` (a decoder alone) and `Qwen2AudioForConditionalGeneration` (an audio
          encoder), the public base weights a new model can start from
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from etils import epath

from stepaudio_jax.inputs import (
    InputError,
    field_problem,
    flag_problem,
    integer_problem,
    number_problem,
    read_object,
    shown,
)

SIZE = (1, 1 << 20)
LIMITS: dict[str, tuple[float, float]] = {
    "n_mels": (1, 1 << 10),
    "n_audio_layer": (1, 1 << 10),
    "num_hidden_layers": (1, 1 << 10),
    "vocab_size": (1, 1 << 24),
    "max_position_embeddings": (1, 1 << 27),
    "original_max_position_embeddings": (1, 1 << 27),
    "rms_norm_eps": (1e-12, 1),
    "rope_theta": (1.01, 1e12),
    "factor": (1, 1e6),
    "beta_fast": (1e-6, 1e6),
    "beta_slow": (1e-6, 1e6),
    "attention_factor": (1e-6, 1e6),
    "mscale": (0, 1e6),
    "mscale_all_dim": (0, 1e6),
}
"""The least and the largest value of a field, far outside every model there is; SIZE of those that are not named. What
is made for each layer must not be made a thousand million times because a number in a file says so."""
TOKEN_IDS = (0, (1 << 31) - 1)
MAX_STOPS = 1000


class ConfigError(ValueError):
    """A config that cannot be used; the message names the field, what was expected and found."""


@dataclasses.dataclass(frozen=True)
class AudioEncoderConfig:
    """The Qwen2-Audio encoder (25 Hz) and the adaptor behind it (12.5 Hz)."""

    n_mels: int = 128
    n_audio_ctx: int = 1500
    n_audio_state: int = 1280
    n_audio_head: int = 20
    n_audio_layer: int = 32
    llm_dim: int = 5120
    kernel_size: int = 3
    adapter_stride: int = 2
    adapter_state: int = 2048
    """Width between the adaptor's two linear layers: 2048 in every release, whose files do not name it."""

    def __post_init__(self):
        _check_fields(self, "audio_encoder_config")
        _divides(self, "audio_encoder_config", "n_audio_state", "n_audio_head")
        if self.kernel_size != 3 or self.adapter_stride != 2:
            raise ConfigError(
                "audio_encoder_config: only kernel_size 3 with adapter_stride 2 is defined by the release, "
                f"found {self.kernel_size} and {self.adapter_stride}"
            )

    @property
    def head_dim(self) -> int:
        return self.n_audio_state // self.n_audio_head


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Rotary embedding scaling, as `rope_scaling` in a Hugging Face config: "linear" or "yarn"."""

    rope_type: str
    factor: float
    original_max_position_embeddings: int | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self):
        if self.rope_type not in ("linear", "yarn"):
            raise ConfigError(f'rope_scaling.rope_type: expected "linear" or "yarn", found {shown(self.rope_type)}')
        _check_fields(self, "rope_scaling")

    @classmethod
    def from_hf(cls, values: Mapping[str, Any] | None) -> RopeScaling | None:
        """Reads `rope_scaling` or `rope_parameters`; None where positions are not scaled.

        Raises:
          ConfigError: a type other than "default", "linear" and "yarn", or a key that is unknown or cannot be used.
        """
        if values is None:
            return None
        values = dict(_object(values, "rope_scaling"))
        rope_type, older = values.pop("rope_type", None), values.pop("type", None)
        rope_type = "default" if rope_type is None is older else older if rope_type is None else rope_type
        values.pop("rope_theta", None)
        if (share := values.pop("partial_rotary_factor", None)) not in (None, 1):
            raise ConfigError(f"rope_scaling.partial_rotary_factor: every dimension turns here, found {shown(share)}")
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"rope_scaling: unknown keys {shown(unknown)}; known are {sorted(known)}")
        if rope_type == "default":
            return None
        if values.get("factor") is None and rope_type in ("linear", "yarn"):
            raise ConfigError(f'rope_scaling: "{rope_type}" needs a "factor"')
        arguments: dict[str, Any] = {"factor": 1.0} | values
        return cls(rope_type=rope_type, **arguments)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The Qwen2.5 decoder. Every size comes from the file, `rms_norm_eps` too (R1.1 1e-5, mini 1e-6)."""

    vocab_size: int = 158720
    hidden_size: int = 5120
    intermediate_size: int = 27648
    num_hidden_layers: int = 64
    num_attention_heads: int = 40
    num_key_value_heads: int = 8
    head_dim: int = 128
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e6
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: int = 65536
    tie_word_embeddings: bool = False

    def __post_init__(self):
        _check_fields(self, "text_config")
        _divides(self, "text_config", "num_attention_heads", "num_key_value_heads")
        if self.head_dim % 2:
            raise ConfigError(f"text_config.head_dim: rotary embedding needs an even size, found {self.head_dim}")


@dataclasses.dataclass(frozen=True)
class StepAudioConfig:
    """Decoder and audio encoder together. Either may be None for a config.json that describes only one."""

    text_config: DecoderConfig | None
    audio_encoder_config: AudioEncoderConfig | None
    eos_token_ids: tuple[int, ...] = (151643, 151645, 151665)
    pad_token_id: int = 151643

    def __post_init__(self):
        text, audio = self.text_config, self.audio_encoder_config
        if text and audio and text.hidden_size != audio.llm_dim:
            raise ConfigError(
                f"audio_encoder_config.llm_dim: expected the decoder's hidden_size {text.hidden_size}, "
                f"found {audio.llm_dim}"
            )

    @property
    def decoder(self) -> DecoderConfig:
        if self.text_config is None:
            raise ConfigError("this config describes an audio encoder only, it has no decoder")
        return self.text_config

    @property
    def audio(self) -> AudioEncoderConfig:
        if self.audio_encoder_config is None:
            raise ConfigError("this config describes a decoder only, it has no audio encoder")
        return self.audio_encoder_config

    def with_yarn(self, factor: float) -> StepAudioConfig:
        """The same model over `factor` times as many positions, by YaRN (arXiv:2309.00071).

        It was no part of the release, which was neither trained nor tested with it: expect answers about short sound to
        change too, and take the smallest factor that is enough.

        Raises:
          ConfigError: a factor below 1, or positions that are scaled already, in another way or by another factor.
        """
        decoder = self.decoder
        scaling = decoder.rope_scaling or RopeScaling("yarn", float(factor))
        if (scaling.rope_type, scaling.factor) != ("yarn", factor):
            raise ConfigError(
                f'text_config.rope_scaling: expected none or "yarn" with factor {factor:g}, which was asked for, found '
                f'"{scaling.rope_type}" with factor {scaling.factor:g}; leave yarn_factor out to use that'
            )
        trained = scaling.original_max_position_embeddings or decoder.max_position_embeddings
        scaling = dataclasses.replace(scaling, original_max_position_embeddings=trained)
        positions = max(decoder.max_position_embeddings, int(trained * factor))
        text = dataclasses.replace(decoder, rope_scaling=scaling, max_position_embeddings=positions)
        return dataclasses.replace(self, text_config=text)

    @classmethod
    def preset(cls, name: str) -> StepAudioConfig:
        """The named size: "33b" (Step-Audio-R1.1), "8b" (Step-Audio-2-mini) or "tiny" (this project's own)."""
        if name not in PRESETS:
            raise ConfigError(f'preset: expected one of {", ".join(PRESETS)}, found "{name}"')
        return PRESETS[name]

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> StepAudioConfig:
        """Reads a parsed config.json of any of the three shapes.

        Raises:
          ConfigError: an architecture that is not ours, or a key that is missing or inconsistent.
        """
        values = _object(values, "config.json")
        architectures = values.get("architectures") or [""]
        if not isinstance(architectures, list) or not isinstance(architectures[0], str):
            raise ConfigError(f"architectures: expected a list with a name, found {shown(architectures)}")
        architecture = architectures[0]
        if architecture == "Qwen2AudioForConditionalGeneration":
            return cls(None, _encoder_from_qwen2_audio(_object(values.get("audio_config", {}), "audio_config")))
        audio = values.get("audio_encoder_config")
        text = _object(values["text_config"], "text_config") if "text_config" in values else values
        if architecture not in ("StepAudio2ForCausalLM", "StepAudioForCausalLMV2", "Qwen2ForCausalLM"):
            raise ConfigError(
                "architectures: expected StepAudio2ForCausalLM, StepAudioForCausalLMV2, Qwen2ForCausalLM or "
                f"Qwen2AudioForConditionalGeneration, found {shown(architecture)}"
            )
        where = "audio_encoder_config"
        if audio is None and architecture != "Qwen2ForCausalLM":
            raise ConfigError(f"{where}: missing from a {architecture} config")
        eos, pad = (_top_or_text(name, values, text) for name in ("eos_token_id", "pad_token_id"))
        if not isinstance(eos, list):
            eos = [151643 if eos is None else eos]
        if not 1 <= len(eos) <= MAX_STOPS:
            raise ConfigError(f"eos_token_id: expected from 1 to {MAX_STOPS} ids, found {len(eos)}")
        pad = eos[0] if pad is None else pad
        for name, token in (*(("eos_token_id", token) for token in eos), ("pad_token_id", pad)):
            _refuse(name, integer_problem(token, *TOKEN_IDS))
        # Only the end-of-text id is in the file; generation also ends a turn (MODEL.md §1).
        stops = (*eos, *(i for i in (151645, 151665) if i not in eos and max(eos) >= 151643))
        return cls(
            _decoder_from_hf(text, tied=_tied(values, text)),
            None if audio is None else _known(AudioEncoderConfig, _object(audio, where), where),
            eos_token_ids=stops,
            pad_token_id=pad,
        )

    def to_hf(self, shape: str = "nested") -> dict[str, Any]:
        """A config.json in one of the shapes above: "nested", "flat", or of the parts "decoder" and "encoder"."""
        if shape == "encoder":
            sizes = {theirs: getattr(self.audio, ours) for ours, theirs in _QWEN2_AUDIO_NAMES.items()}
            audio = {"model_type": "qwen2_audio_encoder", "encoder_ffn_dim": 4 * self.audio.n_audio_state, **sizes}
            return {
                "architectures": ["Qwen2AudioForConditionalGeneration"],
                "model_type": "qwen2_audio",
                "audio_config": audio,
            }
        text = dataclasses.asdict(self.decoder)
        text |= {"rope_scaling": _rope_to_hf(self.decoder.rope_scaling), "hidden_act": "silu"}
        ids = {"eos_token_id": list(self.eos_token_ids), "pad_token_id": self.pad_token_id}
        if shape == "decoder":
            return {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **text, **ids}
        text["num_attention_groups"] = self.decoder.num_key_value_heads
        audio = {"audio_encoder_config": dataclasses.asdict(self.audio)}
        if shape == "flat":
            return {
                "architectures": ["StepAudioForCausalLMV2"],
                "model_type": "step_audio_qwen2",
                **text,
                **audio,
                **ids,
            }
        if shape != "nested":
            raise ConfigError(f'shape: expected nested, flat, decoder or encoder, found "{shape}"')
        return {
            "architectures": ["StepAudio2ForCausalLM"],
            "model_type": "step_audio_2",
            "text_config": text,
            **audio,
            **ids,
        }

    @classmethod
    def read(cls, path: epath.PathLike, *, yarn_factor: float | None = None) -> StepAudioConfig:
        """Reads a config.json file (or the one in a folder), with `yarn_factor` as `with_yarn` makes of it.

        Raises:
          ConfigError: what is wrong, and in which file.
        """
        path = epath.Path(path)
        path = path / "config.json" if path.is_dir() else path
        try:
            config = cls.from_hf(read_object(path))
            return config if yarn_factor is None else config.with_yarn(yarn_factor)
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; a checkpoint folder holds a config.json") from None
        except InputError as error:  # which names the file
            raise ConfigError(str(error)) from None
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


def _decoder_from_hf(text: Mapping[str, Any], *, tied: bool) -> DecoderConfig:
    values = dict(text) | {"tie_word_embeddings": tied}
    if (activation := values.get("hidden_act", "silu")) != "silu":
        raise ConfigError(f'text_config.hidden_act: expected "silu", found {shown(activation)}')
    if (window := values.get("use_sliding_window")) not in (None, False):
        raise ConfigError(f"text_config.use_sliding_window: the release attends to everything, found {shown(window)}")
    if (share := values.get("partial_rotary_factor")) not in (None, 1):
        raise ConfigError(f"text_config.partial_rotary_factor: every dimension turns here, found {shown(share)}")
    groups = [values[key] for key in ("num_key_value_heads", "num_attention_groups") if key in values]
    if not groups:
        raise ConfigError("text_config.num_key_value_heads: missing (as is num_attention_groups)")
    for count in groups:
        _refuse("text_config.num_key_value_heads", integer_problem(count, *SIZE))
    if groups[-1] != groups[0]:
        raise ConfigError(
            f"text_config.num_attention_groups: expected num_key_value_heads {groups[0]}, found {groups[-1]}"
        )
    values["num_key_value_heads"] = groups[0]
    values |= _rope_from_hf(values)
    if values.get("head_dim") is None:
        for key in ("hidden_size", "num_attention_heads"):
            if key not in values:
                raise ConfigError(f"text_config.{key}: missing")
            _refuse(f"text_config.{key}", integer_problem(values[key], *SIZE))
        width, heads = values["hidden_size"], values["num_attention_heads"]
        _require(width % heads == 0, "text_config.hidden_size", f"a multiple of {heads} heads", width)
        values["head_dim"] = width // heads
    return _known(DecoderConfig, values, "text_config")


def _rope_from_hf(text: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of a decoder. transformers 5 has both in `rope_parameters`, the new name of
    `rope_scaling`, and goes by that where an older `rope_theta` lies beside it."""
    rope = next((v for key in ("rope_parameters", "rope_scaling") if (v := text.get(key)) is not None), None)
    scaling = RopeScaling.from_hf(rope)
    if (older := text.get("rope_scaling")) is not None and scaling != RopeScaling.from_hf(older):
        raise ConfigError("text_config.rope_scaling: says otherwise than rope_parameters beside it; remove one of them")
    within, beside = (rope or {}).get("rope_theta"), text.get("rope_theta")
    if within is None is beside:
        raise ConfigError("text_config.rope_theta: missing")
    theta = beside if within is None else within
    _refuse("text_config.rope_theta", number_problem(theta, *LIMITS["rope_theta"]))
    if beside is not None and theta != beside:
        name = "rope_parameters" if text.get("rope_parameters") is not None else "rope_scaling"
        told = f"text_config.rope_theta {shown(beside)} is left over: {name} says {shown(theta)}, which is used"
        warnings.warn(told, stacklevel=2)
    return {"rope_theta": theta, "rope_scaling": scaling}


def _top_or_text(name: str, values: Mapping[str, Any], text: Mapping[str, Any]) -> Any:
    """A value that files have at the top or in the part of the decoder; None where neither says anything."""
    return values[name] if values.get(name) is not None else text.get(name)


def _tied(values: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    """`tie_word_embeddings`, which files have at the top, in the part of the decoder, or at both."""
    given = [of["tie_word_embeddings"] for of in (values, text) if "tie_word_embeddings" in of]
    for value in given:
        _refuse("tie_word_embeddings", flag_problem(value))
    if given[:1] != given[-1:]:
        raise ConfigError(f"tie_word_embeddings: {given[0]} at the top, {given[-1]} in text_config; make them the same")
    return given[0] if given else False


_QWEN2_AUDIO_NAMES = {
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads",
    "n_audio_layer": "encoder_layers",
}


def _encoder_from_qwen2_audio(audio: Mapping[str, Any]) -> AudioEncoderConfig:
    defaults = AudioEncoderConfig()  # Qwen2-Audio omits the keys that keep its class defaults
    return AudioEncoderConfig(
        **{ours: audio.get(theirs, getattr(defaults, ours)) for ours, theirs in _QWEN2_AUDIO_NAMES.items()}
    )


def _known(cls, values: Mapping[str, Any], where: str):
    """Builds `cls` from the keys it knows; a size the file leaves out is an error, never a default."""
    optional = {"rope_scaling", "adapter_state", "kernel_size", "adapter_stride"}
    fields = [f.name for f in dataclasses.fields(cls)]
    if missing := [name for name in fields if name not in values and name not in optional]:
        raise ConfigError(f"{where}: missing {', '.join(missing)}")
    return cls(**{name: values[name] for name in fields if name in values})


def _rope_to_hf(rope: RopeScaling | None) -> dict[str, Any] | None:
    return {k: v for k, v in dataclasses.asdict(rope).items() if v is not None} if rope else None


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected a JSON object {{…}}, found {shown(value)}")
    return value


def _check_fields(config, where: str):
    """Every field is of the type that it is declared with, and in its range."""
    for field in dataclasses.fields(config):
        problem = field_problem(getattr(config, field.name), str(field.type), *LIMITS.get(field.name, SIZE))
        _refuse(f"{where}.{field.name}", problem)


def _refuse(field: str, problem: str | None):
    if problem is not None:
        raise ConfigError(f"{field}: {problem}")


def _divides(config, where: str, total: str, part: str):
    whole, by = getattr(config, total), getattr(config, part)
    _require(whole % by == 0, f"{where}.{total}", f"a multiple of {part} {by}", whole)


def _require(ok: bool, field: str, expected: str, found):
    if not ok:
        raise ConfigError(f"{field}: expected {expected}, found {found}")


PRESETS: dict[str, StepAudioConfig] = {
    "33b": StepAudioConfig(DecoderConfig(), AudioEncoderConfig()),
    "8b": StepAudioConfig(
        DecoderConfig(
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            rms_norm_eps=1e-6,
            max_position_embeddings=16384,
        ),
        AudioEncoderConfig(llm_dim=3584),
    ),
    "tiny": StepAudioConfig(
        DecoderConfig(
            vocab_size=1024,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=32,
            rms_norm_eps=1e-6,
            rope_theta=1e4,
            max_position_embeddings=4096,
        ),
        AudioEncoderConfig(n_audio_state=128, n_audio_head=4, n_audio_layer=3, llm_dim=192, adapter_state=384),
        eos_token_ids=(0, 1),
        pad_token_id=0,
    ),
}
