"""One file per runnable thing, each with get_config()."""
