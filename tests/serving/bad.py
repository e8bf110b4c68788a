"""Requests that no server should answer, each with what its refusal says: for the tests and for the soak."""

import numpy as np

from tests import small
from tests.serving.servers import encoded, sound, wav

MAX_CHOICES, MAX_AUDIO_SECONDS = 4, 20
"""Limits of the server that they are too much for."""


def user(content) -> list:
    return [{"role": "user", "content": content}]


HI = user("Hi")
BODIES = {  # what: (body, part of the message, param)
    "no messages": ({}, "expected, found nothing", "messages"),
    "messages of text": ({"messages": "Hi"}, "valid array", "messages"),
    "empty messages": ({"messages": []}, "at least 1 item", "messages"),
    "message of text": ({"messages": ["Hi"]}, "", "messages[0]"),
    "no role": ({"messages": [{"content": "Hi"}]}, "found nothing", "messages[0].role"),
    "role with a line break": ({"messages": [{"role": "human\nYou", "content": "x"}]}, "pattern", "messages[0].role"),
    "special string as role": ({"messages": [{"role": "<|BOT|>", "content": "x"}]}, "pattern", "messages[0].role"),
    "unknown role without content": ({"messages": [{"role": "oracle"}]}, "expected text", "messages[0].content"),
    "unknown role's number": ({"messages": [{"role": "oracle", "content": 7}]}, "found 7", "messages[0].content"),
    "unknown part": ({"messages": user([{"type": "image_url"}])}, "expected one of", "messages[0].content[0].type"),
    "part of text": ({"messages": user(["Hi"])}, "an object", "messages[0].content[0]"),
    "text of number": ({"messages": user([{"type": "text", "text": 5}])}, "found 5", "messages[0].content[0].text"),
    "audio of text": (
        {"messages": user([{"type": "input_audio", "input_audio": "x"}])},
        "an object with data",
        "messages[0].content[0].input_audio",
    ),
    "audio without data": (
        {"messages": user([{"type": "input_audio", "input_audio": {}}])},
        "found None",
        "messages[0].content[0].input_audio.data",
    ),
    "tool call by a user": (
        {"messages": [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}]},
        "only an assistant",
        "messages[0].tool_calls",
    ),
    "huge n": ({"messages": HI, "n": 10**9}, "at most 4", "n"),
    "no n": ({"messages": HI, "n": 0}, "greater than or equal to 1", "n"),
    "negative max_tokens": ({"messages": HI, "max_tokens": -5}, "greater", "max_tokens"),
    "max_tokens as text": ({"messages": HI, "max_tokens": "5"}, "valid integer", "max_tokens"),
    "hot": ({"messages": HI, "temperature": "hot"}, "valid number", "temperature"),
    "cold": ({"messages": HI, "temperature": -1}, "greater", "temperature"),
    "top_p": ({"messages": HI, "top_p": 0}, "greater than 0", "top_p"),
    "stream as text": ({"messages": HI, "stream": "yes"}, "valid boolean", "stream"),
    "stop of number": ({"messages": HI, "stop": 3}, "", "stop"),
    "empty stop": ({"messages": HI, "stop": [""]}, "1 to 1000", "stop"),
    "many stops": ({"messages": HI, "stop": ["x"] * 1000}, "at most 32", "stop"),
    "seed": ({"messages": HI, "seed": 2**70}, "", "seed"),
    "top_logprobs": ({"messages": HI, "logprobs": True, "top_logprobs": 21}, "20", "top_logprobs"),
    "top_logprobs alone": ({"messages": HI, "top_logprobs": 2}, "logprobs: true", "top_logprobs"),
    "stream_options alone": ({"messages": HI, "stream_options": {}}, "stream: true", "stream_options"),
    "tools of text": ({"messages": HI, "tools": "all"}, "", "tools"),
    "a forced tool": ({"messages": HI, "tool_choice": "required"}, "'none' or 'auto'", "tool_choice"),
    "a schema": ({"messages": HI, "response_format": {"type": "json_object"}}, "not supported", "response_format"),
    "a penalty": ({"messages": HI, "frequency_penalty": 1.5}, "not supported", "frequency_penalty"),
    "to continue a user": ({"messages": HI, "continue_final_message": True}, "found user", "continue_final_message"),
    "to continue and begin": (
        {"messages": HI, "continue_final_message": True, "add_generation_prompt": True},
        "found true",
        "continue_final_message",
    ),
    "nothing to write": ({"messages": HI, "add_generation_prompt": False}, "nothing", "add_generation_prompt"),
    "more text than positions": ({"messages": user("tone " * 100_000)}, "512 positions", "messages"),
}


NOT_JSON = {
    "nothing": b"",
    "half": b'{"messages": [',
    "words": b"Hello",
    "a list": b"[1, 2]",
    "a number": b"17",
    "null": b"null",
    "bytes": bytes(range(256)),
    "not UTF-8": b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "half a pair": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "NaN": b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    "infinity": b'{"messages": [{"role": "user", "content": "x"}], "top_p": 1e999}',
    "deep list": b"[" * 500_000,
    "deep content": b'{"messages": [{"role": "user", "content": ' + b'[{"a":' * 100_000,
    "deep tools": b'{"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", "function": '
    + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}]}",
}  # fmt: skip


SOUNDS = {  # what: (data, part of the message)
    "not base64": ("!!!not base64!!!", "not base64"),
    "half base64": (sound()[:-3], "not base64"),
    "empty": ("", "empty"),
    "no sound": (encoded(b"hello, this is text"), "not a sound file"),
    "zero samples": (encoded(wav(np.zeros(0, np.float32))), "no sound (0 samples)"),
    "short": (encoded(wav(np.zeros(50, np.float32))), "one audio token needs more"),
    "NaN": (encoded(wav(np.full(8000, np.nan, np.float32))), "8000 samples are not finite"),
    "infinite": (encoded(wav(np.full(8000, np.inf, np.float32))), "not finite"),
    "truncated": (encoded(wav(small.sound(1.0))[:9000]), "truncated"),
    "too long": (encoded(wav(np.zeros(21 * 1000, np.float32), 1000, "PCM_U8")), "more than the 20 s"),
}


COMPLETIONS = {
    "nothing": ({}, "prompt"),
    "empty": ({"prompt": ""}, "prompt"),
    "empty list": ({"prompt": []}, "prompt"),
    "empty ids": ({"prompt": [[]]}, "prompt"),
    "an id too far": ({"prompt": [5, 10**6]}, "prompt"),
    "a negative id": ({"prompt": [5, -1]}, "prompt"),
    "many prompts": ({"prompt": ["x"] * 5}, "prompt"),
    "logprobs": ({"prompt": "x", "logprobs": 100}, "logprobs"),
    "best_of": ({"prompt": "x", "best_of": 3}, "best_of"),
    "suffix": ({"prompt": "x", "suffix": "y"}, "suffix"),
}
