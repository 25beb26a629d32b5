"""Steer a language model in the browser.

python demo/EasySteer_demo/app.py
python demo/EasySteer_demo/app.py --port 9000 --model Qwen/Qwen2.5-0.5B-Instruct
gradio demo/EasySteer_demo/app.py
"""

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

# Nobody is told that it runs.
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}

log = logging.getLogger("steer.demo")
NEEDS = "the web demo needs {}: pip install -e '.[demo]' in the project's folder"
# The page, by the name under which gradio's reloader looks for it.
demo: Any = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the model and serve the page; its exit status: 1 after a mistake of the user's."""
    try:
        from steer.terminal import command
    except ModuleNotFoundError as error:
        sys.exit(f"error: {NEEDS.format(error.name)}")
    return command(_run, arguments)


def _run(arguments: list[str]) -> None:
    global demo
    try:
        from options import read_options
        from page import launch, page
        from studio import Studio
    except ModuleNotFoundError as error:
        raise ImportError(NEEDS.format(error.name)) from error
    from steer.serve.settings import is_loopback

    options = read_options(arguments)
    log.info("loading %s", options.model_name_or_path)
    demo = page(Studio.of(options))
    if not is_loopback(options.host):
        log.warning("everybody who reaches port %d can use the model", options.port)
    launch(demo, options.host, options.port)


# Where all went well, gradio's reloader goes on.
if __name__ == "__main__" and (status := main()):
    sys.exit(status)
