"""Calls of tools in replies: the server reads and writes them as training data does (text/tool_calls.py)."""

from stepaudio_jax.text.tool_calls import CLOSE, OPEN, Call, ToolCallParser, write_call

__all__ = ["CLOSE", "OPEN", "Call", "ToolCallParser", "write_call"]
