"""The page: four tabs over the orders that the command line makes too, each a named endpoint of an API."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import gradio as gr
from gradio import processing_utils
from PIL import Image
from starlette.middleware import Middleware

from omfa.app.guard import Guard
from omfa.app.studio import Stopped, Studio
from omfa.bodies.named_poses import NAMED_POSES
from omfa.bodies.parameters import BodyParameters
from omfa.components import CLOTHES
from omfa.images import ENOUGH, read_image
from omfa.orders import KEEPS, Order, Pose, PoseOf, named_pose
from omfa.sheets import save_whole

EXAMPLES = Path(__file__).parent / "examples"
MOST_BYTES = 20 * 2**20  # of an upload
OWN_POSE = "as in the photo"
MOST_STEPS, MOST_VIEWS, WAITING = 200, 24, 64
CSS = (
    "footer {opacity: .6} .gradio-container {width: 100% !important; max-width: 1180px !important; margin: 0 auto} "
    ".gallery img, table img {object-fit: contain !important} "  # examples whole, heads and all
    "table th {white-space: normal !important} "
    "@media (max-width: 480px) {.tab-container button {padding: 0 6px !important}}"  # four in a phone's width
)
PARTS = {"Tops": "upper", "Trousers and skirts": "lower", "Dresses": "dress"}
KEPT = {"auto": "what fits best", "photo": "all but the clothes", "others": "the other clothes", "nothing": "nothing"}

log = logging.getLogger("omfa.app")


def fetch_nothing() -> None:
    """Inputs are uploaded: where gradio would fetch an address that somebody gives, it says so instead."""

    async def refuse(*_: Any, **__: Any) -> str:
        raise gr.Error("Pictures are uploaded here, not fetched from an address.", print_exception=False)

    def refuse_at_once(*_: Any, **__: Any) -> str:
        raise gr.Error("Pictures are uploaded here, not fetched from an address.", print_exception=False)

    processing_utils.async_ssrf_protected_download = refuse  # type: ignore[assignment]
    processing_utils.ssrf_protected_download = refuse_at_once  # type: ignore[assignment]


def as_it_came(component: Any) -> Any:
    """A component that hands on the path of what was uploaded: the project's own reader looks at it, nobody before."""
    component.preprocess = lambda payload: None if payload is None else payload.path  # no subclass: gradio writes a
    return component  # stub beside the source of each


def picture_input(label: str, **options: Any) -> gr.Image:
    """A place for a photo."""
    shown: dict[str, Any] = {"type": "filepath", "sources": ["upload", "clipboard"], "buttons": ["fullscreen"]}
    return as_it_came(gr.Image(label=label, height=250, **shown, **options))


def picture(path: str | None, what: str) -> Image.Image | None:
    """An uploaded picture; None where there is none. ValueError in the visitor's words for a bad one."""
    if path is None:
        return None
    try:
        return read_image(path, enough=ENOUGH)
    except ValueError as e:
        raise ValueError(f"{what}: {str(e).removeprefix(f'{path}: ')}") from None


def chosen_pose(name: str | None, photo: str | None, file: str | None, size: tuple[int, int]) -> Pose:
    """The pose that a visitor chose; a named one is drawn ``size`` (H, W) large.

    Raises:
        ValueError: two at once, or one that can't be read.
    """
    named = name not in (None, "", OWN_POSE)
    if named + (photo is not None) + (file is not None) > 1:
        raise ValueError("Choose one pose: a named one, a photo of somebody in it, or a file.")
    if file is not None:
        try:
            return BodyParameters.load(file)
        except ValueError as e:
            raise ValueError(f"The pose file: {str(e).removeprefix(f'{file}: ')}") from None
    if photo is not None:
        seen = picture(photo, "The photo of the pose")
        return None if seen is None else PoseOf(seen)
    return named_pose(str(name), size) if named else None


class Handlers:
    """What the buttons do. Each public method is an endpoint: its docstring is the endpoint's documentation."""

    def __init__(self, studio: Studio, folder: Path) -> None:
        self.studio, self.folder = studio, folder
        self._stops: dict[str, threading.Event] = {}

    def try_on(
        self, photo: str | None, upper: str | None, lower: str | None, dress: str | None, pose: str = OWN_POSE,
        pose_photo: str | None = None, pose_file: str | None = None, keep: str = "auto", seed: int = 0,
        steps: int = 0, guidance: float = 0.0, request: gr.Request | None = None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[list[tuple[str, str]], str]:  # fmt: skip
        """Put garments on a person.

        Args:
            photo: the person.
            upper: shop picture of a top, or nothing.
            lower: shop picture of trousers or a skirt, or nothing.
            dress: shop picture of a dress, or nothing.
            pose: name of a pose to take, or "as in the photo".
            pose_photo: photo of somebody in the pose to take, or nothing.
            pose_file: body parameters (.npz) of the pose to take, or nothing.
            keep: auto, photo (all of the photo but the garments), others (the other clothes), nothing.
            seed: the same seed gives the same picture.
            steps: of the sampler; 0 for the model's own.
            guidance: of the sampler; 0 for the model's own.
        """

        def order() -> Order:
            asked = self._asked(photo, (upper, lower, dress), (pose, pose_photo, pose_file))
            return Order(task="try-on", name="try_on", keep=keep, **asked)

        return self._made(order, (seed, steps, guidance), request, progress)

    def take_off(
        self, photo: str | None, categories: list[Literal["upper", "lower", "dress"]], seed: int = 0, steps: int = 0,
        guidance: float = 0.0, request: gr.Request | None = None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[list[tuple[str, str]], str]:  # fmt: skip
        """Take garments off a photo, as shop pictures.

        Args:
            photo: a dressed person.
            categories: which garments: upper, lower, dress.
            seed: the same seed gives the same picture.
            steps: of the sampler; 0 for the model's own.
            guidance: of the sampler; 0 for the model's own.
        """

        def order() -> Order:
            person = picture(photo, "The photo")
            if person is None:
                raise ValueError("Choose a photo of a dressed person first.")
            return Order(task="try-off", name="garment", photo=person, categories=tuple(categories or ()))

        return self._made(order, (seed, steps, guidance), request, progress)

    def transfer(
        self, source: str | None, photo: str | None, categories: list[Literal["upper", "lower", "dress"]],
        pose: str = OWN_POSE, pose_photo: str | None = None, pose_file: str | None = None, keep: str = "auto",
        seed: int = 0, steps: int = 0, guidance: float = 0.0, request: gr.Request | None = None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[list[tuple[str, str]], str]:  # fmt: skip
        """Take garments off one person and put them on another.

        Args:
            source: who wears the garments.
            photo: who shall wear them.
            categories: which garments: upper, lower, dress.
            pose: name of a pose to take, or "as in the photo".
            pose_photo: photo of somebody in the pose to take, or nothing.
            pose_file: body parameters (.npz) of the pose to take, or nothing.
            keep: auto, photo (all of the photo but the garments), others (the other clothes), nothing.
            seed: the same seed gives the same picture.
            steps: of the sampler; 0 for the model's own.
            guidance: of the sampler; 0 for the model's own.
        """

        def order() -> Order:
            wearer, person = picture(source, "The photo of who wears them"), picture(photo, "The photo of who shall")
            if wearer is None or person is None:
                raise ValueError("Choose both photos first: who wears the clothes, and who shall.")
            at = chosen_pose(pose, pose_photo, pose_file, self._size(person))
            taken = tuple(categories or ())
            return Order(
                task="transfer", name="transfer", source=wearer, photo=person, categories=taken, pose=at, keep=keep
            )

        return self._made(order, (seed, steps, guidance), request, progress)

    def turn_around(
        self, photo: str | None, upper: str | None, lower: str | None, dress: str | None, views: int = 6,
        pose: str = OWN_POSE, pose_file: str | None = None, seed: int = 0, steps: int = 0, guidance: float = 0.0,
        request: gr.Request | None = None, progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[list[tuple[str, str]], str]:  # fmt: skip
        """Show a person from all sides.

        Args:
            photo: the person.
            upper: shop picture of a top to put on, or nothing to keep what the person wears.
            lower: shop picture of trousers or a skirt, or nothing.
            dress: shop picture of a dress, or nothing.
            views: pictures over the full turn.
            pose: name of a pose to take, or "as in the photo".
            pose_file: body parameters (.npz) of the pose to take, or nothing.
            seed: the same seed gives the same picture.
            steps: of the sampler; 0 for the model's own.
            guidance: of the sampler; 0 for the model's own.
        """

        def order() -> Order:
            asked = self._asked(photo, (upper, lower, dress), (pose, None, pose_file))
            if not 1 <= views <= MOST_VIEWS:
                raise ValueError(f"Choose 1 to {MOST_VIEWS} views.")
            return Order(task="turntable", name="view", views=int(views), **asked)

        return self._made(order, (seed, steps, guidance), request, progress)

    def stop(self, request: gr.Request) -> None:
        """Call off what this visitor has asked for."""
        if event := self._stops.get(str(request.session_hash)):
            event.set()

    def _asked(
        self, photo: str | None, garments: tuple[str | None, ...], pose: tuple[str | None, str | None, str | None]
    ) -> dict[str, Any]:
        """An order's photo, garments and pose, read."""
        person = picture(photo, "The photo")
        found = {c: picture(g, f"The {c} garment") for c, g in zip(PARTS.values(), garments, strict=True)}
        at = chosen_pose(*pose, self._size(person))
        if person is None:
            raise ValueError("Choose a photo of a person first.")
        return {"photo": person, "garments": {c: p for c, p in found.items() if p is not None}, "pose": at}

    def _size(self, person: Image.Image | None) -> tuple[int, int]:
        """(H, W) of a picture in a named pose: the photo's height, the model's shape."""
        height, width = self.studio.pipe.config.person_size
        tall = max(height, min(1024, person.height if person else height))
        return tall, round(tall * width / height)

    def _made(
        self,
        order: Callable[[], Order],
        sampler: tuple[int, int, float],
        request: gr.Request | None,
        progress: gr.Progress,
    ) -> tuple[list[tuple[str, str]], str]:
        visitor, stop = str(request.session_hash if request else ""), threading.Event()
        self._stops[visitor] = stop
        seed, steps, guidance = sampler

        try:
            if not 0 <= (steps or 0) <= MOST_STEPS:
                raise ValueError(f"Choose 0 to {MOST_STEPS} steps; 0 takes the model's own.")
            progress(0, desc="looking at the pictures")
            wanted = order()
            made = self.studio.make(wanted, int(seed or 0), int(steps or 0) or None, guidance or None, progress, stop)
            return list(self._saved(made.pictures.items())), "\n\n".join(made.notes)
        except Stopped:
            raise gr.Error("Stopped.", title="Stopped", print_exception=False, duration=5) from None
        except ValueError as e:
            raise gr.Error(" ".join(str(e).split()), title="That did not work", print_exception=False) from None
        except Exception:
            log.exception("an order failed")
            sorry = "Something went wrong here. It is in the log; try again, or with another picture."
            raise gr.Error(sorry, title="Sorry", print_exception=False) from None
        finally:
            if self._stops.get(visitor) is stop:
                del self._stops[visitor]

    def _saved(self, pictures: Iterable[tuple[str, Image.Image]]) -> Iterable[tuple[str, str]]:
        """Files under names that a download keeps, and captions."""
        folder = self.folder / "made" / uuid4().hex
        folder.mkdir(parents=True)
        for name, made in pictures:
            yield str(save_whole(made, folder / f"{name}.png")), name.replace("_", " ")


# ---------------------------------------------------------------------------------------------------- the layout


def opened(
    studio: Studio,
    folder: Path,
    host: str,
    port: int,
    allowed: list[tuple[str, str]] | None = None,
    mcp: bool = False,
    about: str = "",
) -> gr.Blocks:
    """The page, served at an address until it is closed.

    Args:
        studio: what makes the pictures.
        folder: for uploads and results; gradio's own (``GRADIO_TEMP_DIR``).
        host, port: where it listens.
        allowed: names and passwords; None lets everybody in.
        mcp: also as tools.
        about: a sentence on the model.

    Raises:
        OSError: the port is taken.
    """
    page = build(studio, folder, about)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page.launch(
        server_name=host, server_port=port, auth=allowed, mcp_server=mcp, max_file_size=MOST_BYTES,
        allowed_paths=[str(EXAMPLES)], app_kwargs={"middleware": [Middleware(Guard, folder=folder)]}, theme=theme,
        css=CSS, footer_links=["api"], share=False, ssr_mode=False, pwa=False, quiet=True, show_error=False,
        enable_monitoring=False, prevent_thread_lock=True,
    )  # fmt: skip
    return page


def build(studio: Studio, folder: Path, about: str = "") -> gr.Blocks:
    """The page.

    Args:
        studio: what makes the pictures.
        folder: for uploads and results; the same as gradio's own.
        about: a sentence on the model.
    """
    fetch_nothing()
    does, example = Handlers(studio, folder), {p.stem: str(p) for p in sorted(EXAMPLES.glob("*.jpg"))}
    with gr.Blocks(title="OMFA", analytics_enabled=False, delete_cache=(60, 3600)) as page:
        gr.Markdown(f"# Try on, take off\nGarments off photos and onto people, in any pose. {about}")
        with _tab("Try on", "Choose a photo of a person and a picture of a garment, or several, and press *Try on*."):
            with gr.Column():
                with gr.Row():
                    photo, top = _side("Person"), _side("Top")
                worn = [top, *_more_garments()]
                rows: list[list[str | None]] = [["man", "plaid_shirt", None], ["woman", "dotted_top", "trousers"]]
                _examples([photo, *worn[:2]], rows, example)
                inputs = [photo, *worn, *_poses(photo=True), *_advanced(keep=True)]
            _button("Try on", does.try_on, inputs, does)
        with _tab("Take off", "Choose a photo of a dressed person; the clothes come off it as pictures for a shop."):
            with gr.Column():
                photo, parts = picture_input("Person"), _categories(["upper"])
                _examples([photo], [["man"], ["woman"]], example)
                inputs = [photo, parts, *_advanced()]
            _button("Take off", does.take_off, inputs, does)
        with _tab("Transfer", "Choose two photos; the clothes of one person go onto the other."):
            with gr.Column():
                with gr.Row():
                    source, photo = _side("Who wears them"), _side("Who gets them")
                parts = _categories(["upper"])
                _examples([source, photo], [["woman", "man"]], example)
                inputs = [source, photo, parts, *_poses(photo=True), *_advanced(keep=True)]
            _button("Transfer", does.transfer, inputs, does)
        with _tab("Turn around", "Choose a photo of a person, to be seen from all sides."):
            with gr.Column():
                photo = picture_input("Person")
                _examples([photo], [["man"]], example)
                views = gr.Slider(1, MOST_VIEWS, 6, step=1, label="Views")
                with gr.Accordion("In other clothes", open=False):
                    worn = [_side("Top"), *_more_garments()]
                inputs = [photo, *worn, views, *_poses(), *_advanced()]
            _button("Turn around", does.turn_around, inputs, does)
        page.unload(does.stop)
    return page.queue(max_size=WAITING, default_concurrency_limit=1)


@contextmanager
def _tab(label: str, words: str) -> Iterator[None]:
    """Two columns under a sentence of what to do."""
    with gr.Tab(label):
        gr.Markdown(words)
        with gr.Row():
            yield


def _side(label: str) -> gr.Image:
    # of two side by side, on a phone too
    return picture_input(label, min_width=140)


def _more_garments() -> list[gr.Image]:
    with gr.Row():
        return [_side("Trousers or skirt"), _side("Dress")]


def _categories(value: list[str]) -> gr.CheckboxGroup:
    choices = [(label, category) for label, category in PARTS.items() if category in set(CLOTHES)]
    return gr.CheckboxGroup(choices, value=value, label="Which clothes")  # type: ignore[arg-type]


def _poses(photo: bool = False) -> list[Any]:
    with gr.Accordion("Another pose", open=False):
        names = [(n.replace("_", " "), n) for n in (OWN_POSE, *NAMED_POSES)]
        found: list[Any] = [gr.Dropdown(names, value=OWN_POSE, label="Pose")]
        with gr.Row():
            if photo:
                found.append(picture_input("or of somebody in a photo", min_width=150))
            found.append(as_it_came(gr.File(label="or of a file (.npz)", file_types=[".npz"], height=120)))
    return found


def _advanced(keep: bool = False) -> list[Any]:
    with gr.Accordion("More options", open=False):
        kept = [gr.Dropdown([(KEPT[k], k) for k in KEEPS], value="auto", label="Keep of the photo")] if keep else []
        with gr.Row():
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=90)
            steps = gr.Number(0, label="Steps (0: own)", precision=0, minimum=0, maximum=MOST_STEPS, min_width=90)
            guidance = gr.Number(0, label="Guidance (0: own)", minimum=0, min_width=90)
    return [*kept, seed, steps, guidance]


def _examples(inputs: list[Any], rows: list[list[str | None]], files: dict[str, str]) -> None:
    if all(name in files for row in rows for name in row if name):
        gr.Examples([[files[n] if n else None for n in row] for row in rows], inputs, cache_examples=False)


def _button(label: str, does: Callable[..., Any], inputs: list[Any], handlers: Handlers) -> None:
    with gr.Column():
        with gr.Row():
            go, stop = gr.Button(label, variant="primary"), gr.Button("Stop", min_width=80, scale=0)
        how: dict[str, Any] = {"format": "png", "columns": 2, "height": 460, "object_fit": "contain"}
        shown = gr.Gallery(label="Result", buttons=["download", "download_all", "fullscreen"], interactive=False, **how)
        notes = gr.Markdown()
        made = go.click(
            does, inputs, [shown, notes], api_name=does.__name__, concurrency_id="model", concurrency_limit=1
        )
        # one picture large, with its download, not a grid of them
        made.success(lambda: gr.Gallery(selected_index=0), None, shown, queue=False, api_visibility="private")
        stop.click(handlers.stop, None, None, cancels=[made], queue=False, api_visibility="private")
