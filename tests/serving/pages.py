"""A server with the page."""

import contextlib

from stepaudio_jax.serving.page import mount
from tests.serving.servers import serving


@contextlib.contextmanager
def page(engine, settings=None, examples=()):
    with serving(engine, settings, lambda app: mount(app, examples)) as running:
        running.http.follow_redirects = True
        yield running
