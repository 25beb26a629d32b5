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

log = logging.getLogger("easysteer")
# The page, by the name under which gradio's reloader looks for it.
demo: Any = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Load the model and serve the page; a mistake of the user's is one line and status 1."""
    global demo
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    try:
        from options import read_options

        options = read_options(arguments)
        from page import launch, page
        from studio import Studio

        from steer.serve.settings import is_loopback

        log.info("loading %s", options.model_name_or_path)
        demo = page(Studio.of(options))
        if not is_loopback(options.host):
            log.warning("everybody who reaches port %d can use the model", options.port)
        launch(demo, options.host, options.port)
    except ModuleNotFoundError as error:
        sys.exit(
            f"error: the web demo needs {error.name}: pip install -e '.[demo]' in the project's "
            "folder"
        )
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
