"""A small picture made of a written file, by the models of the libraries: what is read back makes pictures.

A layer that has the same weights to the bit as its folder's, and gets the same numbers, gives the same; so a file whose
every tensor is its folder's gives the folder's picture, and only one of the two has to be made.
"""

import contextlib
import functools
import gc
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth import rng
from dreambooth.errors import DreamBoothError, ExportError
from dreambooth.formats.ldm import from_ldm
from dreambooth.formats.safetensors_file import Cast
from dreambooth.models.base import quiet_libraries
from dreambooth.models.config_limits import refuse_wrong_configs
from dreambooth.models.tokenizer import load_tokenizer
from dreambooth.models.weights import read_weights

if TYPE_CHECKING:
    from torch import Tensor

PROMPT, TIMESTEP, LATENT_SIZE = "a photo", 500, (4, 4)
NO_TOKENIZER = "no picture was made: the folder has no tokenizer"
ENDED = "no picture was made: what was to make it was ended, most likely for want of memory"
NO_MEMORY = "no picture was made: there was no memory for it"
# A process that the system ends for want of memory ends by SIGKILL, a name that Windows has not.
ENDED_BY_SYSTEM = -9

Models = tuple[Any, Any, Any, "Tensor"]
# Given a written file and whether it is .safetensors: makes its picture, and returns "" or why there is none.
MakePicture = Callable[[Path, bool], str]


@contextlib.contextmanager
def made_in_thread(folder: Path) -> Iterator[MakePicture]:
    """Build the folder's models in another thread, for a process that has loaded the libraries or will need them."""
    with ThreadPoolExecutor(1) as beside:
        models = beside.submit(empty_models, folder)
        yield lambda path, is_safetensors: make_picture(models.result(), path, is_safetensors)


@contextlib.contextmanager
def made_in_process(folder: Path) -> Iterator[MakePicture]:
    """Load the libraries and build the folder's models in another process, for one that only converts.

    That takes longer than writing the file, and in a thread the two would wait for each other all the time.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_wait_for_a_file, args=(there, folder), daemon=True)
    process.start()
    there.close()

    def ask(path: Path, is_safetensors: bool) -> str:
        try:
            here.send((path, is_safetensors))
            told: str | DreamBoothError = here.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            process.join()
            if process.exitcode == ENDED_BY_SYSTEM:
                return ENDED
            raise ExportError(
                "No picture could be made of the written file.", "What hindered it stands above.",
                "See that the folder opens with diffusers, or tell us.",
            ) from None  # fmt: skip
        if isinstance(told, DreamBoothError):
            raise told
        return told

    try:
        with _no_threads_of_torch():
            yield ask
    finally:
        here.close()
        # As it ends by itself, Python looks through all that the libraries made: 0.8 s.
        process.terminate()
        process.join()


def _wait_for_a_file(there: Connection, folder: Path) -> None:
    """Get ready, make the picture of the file that is named, and tell how it went; end with who asked."""
    # An interruption from the terminal reaches both, and the other one waits for this and says what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Looking for cycles among all that the libraries define takes a fifth of their loading, and finds none.
    gc.disable()
    failed: DreamBoothError | None = None
    models: Models | None = None
    try:
        models = empty_models(folder)
    except DreamBoothError as error:
        failed = error
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        path, is_safetensors = there.recv()
        there.send(failed or _told(models, path, is_safetensors))


def _told(models: Models | None, path: Path, is_safetensors: bool) -> str | DreamBoothError:
    """Make the picture and return what there is to tell of it, a mistake of the user's included."""
    try:
        return make_picture(models, path, is_safetensors)
    except DreamBoothError as error:
        return error
    except MemoryError:
        return NO_MEMORY


@contextlib.contextmanager
def _no_threads_of_torch() -> Iterator[None]:
    """Have torch compute in the threads that ask, with none of its own.

    Writing and comparing go on beside the other process. Threads of torch keep a core busy while they wait for one
    another: with two cores the libraries then load a quarter slower.
    """
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def empty_models(folder: Path) -> Models | None:
    """Return the folder's UNet, VAE and text encoder without weights, and a prompt's tokens; None without a tokenizer.

    Raises the libraries' own errors for a folder that is no model.
    """
    if not (folder / "tokenizer").is_dir():
        return None
    refuse_wrong_configs(folder)
    quiet_libraries()
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with init_empty_weights(include_buffers=False):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
        text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
    token_ids = load_tokenizer(str(folder / "tokenizer"), None)(PROMPT, return_tensors="pt").input_ids
    return unet.eval(), vae.eval(), text_encoder.eval(), token_ids


def make_picture(models: Models | None, path: Path, is_safetensors: bool) -> str:
    """Make a picture of (1, 3, 32, 32) in fp32 from noise by one unguided step; return "", or why none was made.

    As small as can be, and still through every layer that a picture needs. Reading the weights is what it costs.
    """
    if models is None:
        return NO_TOKENIZER
    import torch

    unet, vae, text_encoder, token_ids = models
    parts = from_ldm(read_weights(path, is_safetensors=is_safetensors))
    for module, weights in zip((unet, vae, text_encoder), parts, strict=True):
        _take_up(module, weights)
    noise = torch.randn((1, unet.config.in_channels, *LATENT_SIZE), generator=rng.generator(0, "generation"))
    with torch.no_grad():
        states = text_encoder(token_ids)[0]
        prediction = unet(noise, TIMESTEP, encoder_hidden_states=states).sample
        vae.decode(noise - prediction)
    return ""


def _take_up(module: Any, weights: "Mapping[str, Tensor]") -> None:
    """Have a module compute with a file's weights in fp32, of which it holds one layer's at a time.

    At rest it holds one zero in every place, so that it looks like any model in fp32 and takes no memory.
    """
    import torch

    # Some versions of transformers have the text encoder's layers under this name.
    prefix = "text_model." if hasattr(module, "text_model") else ""
    zeros = {prefix + name: torch.zeros(()).expand(tensor.shape) for name, tensor in weights.items()}
    module.load_state_dict(zeros, assign=True)
    memory: dict[str, Cast] = {}
    for layer_name, layer in module.named_modules():
        if at_rest := dict(layer.named_parameters(recurse=False)):
            own = {name: weights[f"{layer_name}.{name}".lstrip(".").removeprefix(prefix)] for name in at_rest}
            # Layers without others inside come one after the other: they share their memory.
            shared = {} if any(layer.children()) else memory
            layer.register_forward_pre_hook(functools.partial(_fill, own, shared))
            layer.register_forward_hook(functools.partial(_empty, at_rest))


def _fill(own: "Mapping[str, Tensor]", memory: dict[str, Cast], layer: Any, inputs: object) -> None:
    import torch

    for name, of_file in own.items():
        widening = memory.setdefault(name, Cast())
        setattr(layer, name, torch.nn.Parameter(widening(of_file, torch.float32), requires_grad=False))


def _empty(at_rest: Mapping[str, Any], layer: Any, inputs: object, output: object) -> None:
    for name, parameter in at_rest.items():
        setattr(layer, name, parameter)
