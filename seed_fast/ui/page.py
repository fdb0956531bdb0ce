"""The page: what is on it, and which function of the workbench each control calls.

It loads nothing from elsewhere: fonts are the system's, and gradio's statistics are off.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from seed_fast.limits import MAX_FILE_BYTES
from seed_fast.ui.workbench import Workbench

logger = logging.getLogger(__name__)

KEPT_SECONDS = 3600  # how long uploads stay in the temporary folder
NEAREST = 5  # codes shown beside each code
READY = "ready"


def build(bench: Workbench) -> gr.Blocks:
    """Build the page of a workbench.

    Returns:
        A page for `served`. Its components have ids, such as "picture-file" and "message", for tests in a browser.
    """
    last = bench.num_codes - 1
    with gr.Blocks(title="seed_fast", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        gr.Markdown(
            f"# seed_fast\nA picture becomes {bench.num_codes} codes, in causal order, and codes become a picture."
        )
        message = gr.Textbox(READY, label="Message", interactive=False, elem_id="message")
        with gr.Tab("Picture"), gr.Row():
            with gr.Column():
                file = gr.File(label="Drop a picture", type="filepath", elem_id="picture-file")
                shown = gr.Image(label="Picture", interactive=False, elem_id="picture")
            with gr.Column():
                codes = gr.Textbox(label="Codes", lines=3, elem_id="codes")
                prefix = gr.Slider(
                    1, bench.num_codes, bench.num_codes, step=1, label="Draw the first codes", elem_id="prefix"
                )
                draw_codes = gr.Button("Draw the codes", elem_id="draw-codes")
                drawn = gr.Image(label="Drawn from the codes", interactive=False, elem_id="drawn")
        with gr.Tab("Change a code"), gr.Row():
            with gr.Column():
                position = gr.Number(0, label=f"Position, 0 to {last}", precision=0, elem_id="position")
                code = gr.Number(0, label="New code", precision=0, elem_id="code")
                change = gr.Button("Change it in the codes of the picture, and draw both", elem_id="change")
                nearest = gr.Dataframe(
                    headers=["position", "code", "nearest codes (distance)"], label="Nearest codes", interactive=False,
                    elem_id="nearest",
                )  # fmt: skip
            with gr.Column():
                before = gr.Image(label="Before", interactive=False, elem_id="before")
                after = gr.Image(label="After", interactive=False, elem_id="after")
        with gr.Tab("Caption"), gr.Row():
            with gr.Column():
                caption = gr.Textbox(label="Caption", elem_id="caption")
                draw_caption = gr.Button("Draw the caption", elem_id="draw-caption")
                caption_codes = gr.Textbox(label="Codes", lines=3, interactive=False, elem_id="caption-codes")
            caption_drawn = gr.Image(label="Drawn from the caption", interactive=False, elem_id="caption-drawn")

        def read(path: str | None) -> dict[Any, Any]:
            """Show a dropped picture, its codes, what they are near, and the picture drawn again."""
            if path is None:  # the file was taken away again
                return {}
            encoded = bench.read(path)
            return {
                shown: encoded.picture, codes: " ".join(map(str, encoded.codes)), nearest: _rows(encoded.codes),
                drawn: bench.picture(encoded.codes) if bench.can_draw else None, prefix: bench.num_codes,
            }  # fmt: skip

        def redraw(text: str, count: int) -> dict[Any, Any]:
            kept = bench.codes(text)
            return {drawn: bench.picture(kept, int(count)), nearest: _rows(kept)}

        def swap(text: str, where: int, new: int) -> dict[Any, Any]:
            kept = bench.codes(text)
            changed = bench.with_code(kept, int(where), int(new))
            return {
                codes: " ".join(map(str, changed)), nearest: _rows(changed),
                before: bench.picture(kept), after: bench.picture(changed),
            }  # fmt: skip

        def write(text: str) -> dict[Any, Any]:
            """Draw a caption. Its codes are shown even where no diffusion model can draw them."""
            new = bench.draw(text)
            picture = bench.picture(new) if bench.can_draw else None
            return {caption_codes: " ".join(map(str, new)), caption_drawn: picture}

        def _rows(kept: list[int]) -> list[list[Any]]:
            return [
                [near.position, near.code, ", ".join(f"{other} ({distance:.3g})" for other, distance in near.nearest)]
                for near in bench.nearest(kept, NEAREST)
            ]

        def on(
            event: Callable[..., Any], work: Callable[..., dict[Any, Any]], inputs: list[Any], outputs: list[Any]
        ) -> None:
            event(_told(work, message), inputs, [*outputs, message], api_name=False)

        on(file.change, read, [file], [shown, codes, nearest, drawn, prefix])
        on(draw_codes.click, redraw, [codes, prefix], [drawn, nearest])
        on(prefix.release, redraw, [codes, prefix], [drawn, nearest])
        on(change.click, swap, [codes, position, code], [codes, nearest, before, after])
        on(draw_caption.click, write, [caption], [caption_codes, caption_drawn])
        on(caption.submit, write, [caption], [caption_codes, caption_drawn])
    return page


def _told(work: Callable[..., dict[Any, Any]], message: Any) -> Callable[..., dict[Any, Any]]:
    """Return `work` with its error as one line in the page's message; the page lives on, whatever fails."""

    @functools.wraps(work)
    def handler(*values: Any) -> dict[Any, Any]:
        try:
            return work(*values) | {message: READY}
        except (ValueError, TypeError) as error:
            return {message: f"error: {error}"}
        except Exception as error:
            logger.exception("%s failed", work.__name__)
            return {message: f"error: {type(error).__name__}: {error}"}

    return handler


@contextmanager
def served(page: gr.Blocks, host: str, port: int) -> Iterator[str]:
    """Serve a page while the block runs.

    Args:
        page: the result of `build`.
        host: address to listen on.
        port: port; 0: the first free one from 7860 on.

    Yields:
        The address of the page.

    Raises:
        OSError: the port is taken, or the address isn't this machine's.
    """
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        _, address, _ = page.queue(api_open=False).launch(
            server_name=host, server_port=port or None, share=False, quiet=True, max_file_size=MAX_FILE_BYTES,
            prevent_thread_lock=True, theme=theme, footer_links=[],
        )  # fmt: skip
    except OSError:
        raise OSError(f"port {port} of {host}: it is taken, or not to be had on this machine") from None
    try:
        yield address
    finally:
        page.close(verbose=False)
