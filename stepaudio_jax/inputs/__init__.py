"""What others made and we read: files within bounds (files.py), and values checked for type and range (values.py)."""

from stepaudio_jax.inputs.files import (
    InputError,
    is_remote,
    one_line,
    open_regular,
    parse_json,
    parse_object,
    read_object,
    read_text,
    regular_file,
)
from stepaudio_jax.inputs.values import field_problem, flag_problem, integer_problem, number_problem, shown

__all__ = [
    "InputError",
    "field_problem",
    "flag_problem",
    "integer_problem",
    "is_remote",
    "number_problem",
    "one_line",
    "open_regular",
    "parse_json",
    "parse_object",
    "read_object",
    "read_text",
    "regular_file",
    "shown",
]
