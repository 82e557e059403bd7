"""The first tab as an API: what its buttons do, a real client does; what it must not get, it does not get."""

import base64
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import app
from dreambooth.config.concepts import load_concepts_list
from dreambooth.data.photo_sets import SAMPLE_SET, photo_set
from dreambooth.data.photos import find_photos
from dreambooth.data.samples import sample_folder
from dreambooth.data.words import Words
from dreambooth.durable import write_json
from dreambooth.environment import Settings
from dreambooth.errors import DreamBoothError
from dreambooth.models.manager import ModelManager
from dreambooth.records.workspace import Workspace
from dreambooth.runs.jobs import Jobs
from tests.harness.decodes import count_decodes, counted_reads
from tests.harness.made_photos import made_photo
from tests.harness.open_page import OpenPage, open_page
from tests.harness.raw_events import RawEvents
from ui.boundary import Services, Shown
from ui.concepts.handlers import Handlers
from ui.concepts.words import sample_words


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPage]:
    """Open a page that others could open too."""
    with open_page(tmp_path_factory.mktemp("page")) as page:
        yield page


@pytest.fixture(scope="module")
def client(opened: OpenPage) -> Client:
    """Return a client of the page."""
    return Client(opened.url, verbose=False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return three photos, one of them a second time a little cut, as files."""
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{number}.jpg" for number in range(4)]
    for path, number in zip(paths, (0, 1, 2, 0), strict=True):
        photo = made_photo(number)
        photo.crop((20, 0, *photo.size) if path.stem == "3" else (0, 0, *photo.size)).save(path, quality=93)
    return paths


def uploaded(client: Client, paths: list[Path]) -> str:
    """Upload files and return the name of their set."""
    return str(client.predict([handle_file(str(path)) for path in paths], api_name="/upload_photos")[0])


def test_photos_are_checked_and_mended_by_name(
    client: Client, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = uploaded(client, photos)
    told = client.predict(name, 512, api_name="/check_photos")
    assert [one["name"] for one in told] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert [[each["code"] for each in one["findings"]] for one in told] == [[], [], [], ["duplicate"]]
    assert told[3]["findings"][0]["other"] == told[0]["photo"]
    first = told[0]["photo"]
    assert client.predict(name, first, 0.9, 0.5, 2.0, api_name="/set_focus")["zoom"] == 2.0
    (after, *_) = client.predict(name, 512, api_name="/check_photos")
    assert [each["code"] for each in after["findings"]] == ["small"]
    assert client.predict(name, first, "refocus", api_name="/change_photo").endswith("was cropped automatically.")
    assert client.predict(name, told[3]["photo"], "remove", api_name="/change_photo") == "3.jpg was removed."
    assert client.predict(name, first, "photo of zwx dog asleep", api_name="/set_caption") == "photo of zwx dog asleep"
    assert client.predict(name, "asleep", "awake", api_name="/edit_captions") == 1, "one has words of its own"
    assert client.predict(name, "", "", "sharp", api_name="/edit_captions") == 3
    captions = [one["caption"] for one in client.predict(name, api_name="/check_photos")]
    assert captions == ["sharp photo of zwx dog awake", *["sharp photo of zwx dog"] * 2]
    assert client.predict(name, "", "", "sharp", api_name="/edit_captions") == 0, "it is there already"
    assert client.predict(name, api_name="/write_captions") == 0, "all have one"
    client.predict(name, first, "", api_name="/set_caption")
    with pytest.raises(AppError, match="HF_HUB_OFFLINE"):
        client.predict(name, api_name="/write_captions")
    with monkeypatch.context() as patch:
        patch.setattr("ui.concepts.captions.load_captioner", lambda token: lambda image: "a toy on a rug")
        assert client.predict(name, api_name="/write_captions") == 1
    (captioned, *_) = client.predict(name, api_name="/check_photos")
    assert captioned["caption"] == "photo of zwx dog, a toy on a rug"
    assert len(client.predict(name, 512, api_name="/check_photos")) == 3
    with pytest.raises(AppError, match="not a place in a photo"):
        client.predict(name, first, 2.0, 0.5, 1.0, api_name="/set_focus")
    with pytest.raises(AppError, match="not in this set"):
        client.predict(name, "../words.json", "remove", api_name="/change_photo")
    with pytest.raises(AppError, match="There is no photo set"):
        client.predict("nothing", 512, api_name="/check_photos")


def test_a_mask_is_set_by_name_and_the_settings_that_are_proposed_train_by_it(
    client: Client, photos: list[Path]
) -> None:
    name = uploaded(client, photos[:2])
    photo = client.predict(name, api_name="/check_photos")[0]["photo"]
    with Image.open(photos[0]) as image:
        width, height = image.size
    painted = io.BytesIO()
    mask = Image.new("L", (width // 2, height // 2))
    mask.paste(255, (0, 0, width // 4, height // 4))
    mask.save(painted, format="PNG")
    encoded = base64.b64encode(painted.getvalue()).decode()

    def planned(settings: dict[str, Any] | None = None) -> tuple[float, str]:
        plan = client.predict(name, "starter", "recommended", settings, api_name="/plan_training")
        return plan["settings"].get("background_weight", 1.0), " ".join(plan["notices"])

    assert planned()[0] == 1
    assert client.predict(name, photo, f"data:image/png;base64,{encoded}", api_name="/set_mask") is True
    assert [one["mask"] for one in client.predict(name, api_name="/check_photos")] == [True, False]
    weight, told = planned()
    assert weight == 0.1
    assert "1 photo has a mask of the subject; the base model finds the subject of the other 1" in told
    weight, told = planned({"background_weight": 1.0})
    assert weight == 1
    assert "1 photo has a mask without effect: set background_weight to 0.1" in told
    for wrong, why in (("no picture", "not base64"), (base64.b64encode(b"GIF").decode(), "not a readable photo")):
        with pytest.raises(AppError, match=why):
            client.predict(name, photo, wrong, api_name="/set_mask")
    assert client.predict(name, photo, api_name="/set_mask") is False
    assert planned()[0] == 1


def test_the_view_that_is_served_is_the_crop_that_is_trained(
    client: Client, opened: OpenPage, photos: list[Path]
) -> None:
    from dreambooth.data.dataset import crop_variant, cropped, load_concept
    from dreambooth.data.photo_sets import photo_set
    from dreambooth.data.photos import read_photo

    name = uploaded(client, photos[:1])
    photo = client.predict(name, 512, api_name="/check_photos")[0]["photo"]
    client.predict(name, photo, 0.2, 0.4, 1.7, api_name="/set_focus")
    (answer,) = RawEvents(opened.url).call("photo_views", [name, None, 96])
    views = sorted(
        (opened.copies_dir / "shown").rglob(f"{Path(photo).stem}.png"), key=lambda path: path.stat().st_ctime
    )
    assert views[-1].parent.name in json.dumps(answer.outputs)
    kept = photo_set(opened.workspace, name)
    (loaded,) = load_concept(
        kept.concept("a", ""), read_prompts_from_txts=False, num_class_images=0, report=print
    ).instance
    crop = crop_variant(5, 0, 0, 3, center_crop=False, hflip=False, is_class=False)
    with Image.open(views[-1]) as shown:
        assert cropped(read_photo(loaded.path).image, crop, (96, 96), loaded.focus).tobytes() == shown.tobytes()


def test_words_are_checked_all_at_once_and_identifiers_proposed(client: Client, photos: list[Path]) -> None:
    name = uploaded(client, photos[:2])
    words = client.predict(name, "object", "qxz", "cup", api_name="/set_words")
    assert (words["instance_prompt"], words["class_prompt"]) == ("photo of qxz cup", "photo of cup")
    with pytest.raises(
        AppError, match=r"identifier: must be one word(.|\n)*instance_prompt: does not contain the identifier"
    ):
        client.predict(name, "", "two words", "", "photo of dog", api_name="/set_words")
    assert not client.predict("dog", "toy", api_name="/check_identifier")["fine"]
    proposed = client.predict("dog", api_name="/propose_identifier")
    assert client.predict(proposed, "dog", api_name="/check_identifier")["fine"]
    assert proposed not in [one["identifier"] for one in client.predict(api_name="/list_photo_sets")]


def test_several_concepts_go_out_and_come_in_as_a_list(client: Client, opened: OpenPage, photos: list[Path]) -> None:
    first, second = uploaded(client, photos[:2]), uploaded(client, photos[2:3])
    client.predict(second, "object", "ukj", "cup", api_name="/set_words")
    assert client.predict([first, second], api_name="/train_together") == [first, second]
    text = client.predict(first, api_name="/export_concepts")
    entries = json.loads(text)
    assert [entry["instance_prompt"] for entry in entries] == ["photo of zwx dog", "photo of ukj cup"]
    # Where others can open the page, no path of this machine is told.
    assert [entry["instance_data_dir"] for entry in entries] == [f"datasets/{first}", f"datasets/{second}"]
    assert str(opened.workspace.data_dir) not in text
    taken = handlers(opened.workspace).take_concepts(_listed(text, opened))
    assert taken[0] == [first, second]
    assert client.predict([first], api_name="/train_together") == [first]


def _listed(text: str, opened: OpenPage) -> Any:
    path = opened.workspace.data_dir / "list.json"
    path.write_text(text)
    return load_concepts_list(path)


def test_folders_of_the_machine_are_read_on_its_own_page_only(client: Client, opened: OpenPage, tmp_path: Path) -> None:
    for folder in (str(sample_folder()), "/", "~", str(opened.workspace.runs_dir)):
        with pytest.raises(AppError, match="Folders are read only if"):
            client.predict(folder, api_name="/add_folder")
    listed = [{"instance_prompt": "a", "instance_data_dir": str(sample_folder())}]
    with pytest.raises(DreamBoothError, match="Folders are read only if"):
        handlers(opened.workspace).take_concepts(_listed(json.dumps(listed), opened))

    own = handlers(Workspace(tmp_path / "data"), takes_folders=True)
    names, lines = own.take_concepts(_listed(json.dumps(listed), opened))
    assert len(own.photos.set_of(names[0]).photos()) == 5
    assert str(own.photos.set_of(names[0]).folder) in own.concepts_list(names[0])
    for wrong in ("", "\0", str(tmp_path / "data"), str(tmp_path), str(tmp_path / "data" / "runs")):
        with pytest.raises(DreamBoothError):
            own.photos.local_folder(wrong)
    with pytest.raises(DreamBoothError, match="is not a folder"):
        own.photos.set_of("x").add_folder(own.photos.local_folder(str(tmp_path / "nothing")))


def handlers(workspace: Workspace, *, takes_folders: bool = False) -> Handlers:
    """Return the tab's functions over a data folder."""
    jobs = Jobs(workspace, ModelManager("cpu"), None)
    settings = Settings(workspace.data_dir)
    return Handlers(
        Services(jobs, workspace, settings, Shown(workspace.data_dir / "copies"), takes_folders=takes_folders)
    )


def test_whose_page_it_is() -> None:
    def own(host: str = "127.0.0.1", share: bool = False, **more: Any) -> bool:
        return app.is_own(app.PageAccess(host, 1, share, None, False), Settings(Path(), **more))

    assert own()
    assert own("localhost")
    assert not own("0.0.0.0")
    assert not own(share=True)
    assert not own(on_space=True)
    assert not own(on_colab=True)
    assert not own(names=("studio.example.org",))


def test_class_pictures_are_seen_and_counted(client: Client, opened: OpenPage, photos: list[Path]) -> None:
    name = uploaded(client, photos[:2])
    client.predict(name, "object", "qqx", "robot", api_name="/set_words")
    assert client.predict(name, api_name="/class_pictures") == {"own": 0, "made": 0}
    made = opened.workspace.class_images_dir / "0123456789abcdef"
    write_json(made / "info.json", {"prompt": "photo of robot"})
    for number in range(2):
        made_photo(number).resize((40, 40)).save(made / f"{number:05d}.png")
    assert client.predict(name, api_name="/class_pictures") == {"own": 0, "made": 2}
    events = RawEvents(opened.url)
    (shown,) = events.call("class_pictures_shown", [name, "photo of robot"])
    assert "2 class images that a training made" in shown.as_html
    assert "00001.png" in json.dumps(shown.outputs)


def test_a_zip_goes_through_the_same_door(client: Client, photos: list[Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in photos[:3]:
            archive.write(path, path.name)
    name, report, *_ = client.predict([handle_file(str(tmp_path / "all.zip"))], api_name="/upload_photos")
    assert "3 photos were added" in report
    assert len(client.predict(name, 512, api_name="/check_photos")) == 3
    assert client.predict(name, api_name="/delete_photos").endswith("were deleted.")
    with pytest.raises(AppError, match="There is no photo set"):
        client.predict(name, 512, api_name="/check_photos")


def test_own_photos_begin_a_set_of_their_own_where_the_samples_is_open(
    opened: OpenPage, client: Client, photos: list[Path]
) -> None:
    sample = photo_set(opened.workspace, SAMPLE_SET)
    sample.add(find_photos(sample_folder()).photos)
    sample.keep_words(sample_words())
    files, told = [handle_file(str(path)) for path in photos[:2]], vars(sample_words())
    arguments = [files, SAMPLE_SET, *told.values(), 512]
    own = client.predict(*arguments, "mine", api_name="/upload_photos")[0]
    again = client.predict([handle_file(str(photos[2]))], *arguments[1:], "mine", api_name="/upload_photos")[0]
    other = client.predict(*arguments, api_name="/upload_photos")[0]
    assert own == again == "mine"
    assert len(photo_set(opened.workspace, own).photos()) == 3
    assert len(sample.photos()) == 5
    assert other not in ("", SAMPLE_SET, own)
    # The sample's words were never typed for these photos; words of one's own are kept.
    assert photo_set(opened.workspace, own).words() == Words()
    typed = {**told, "identifier": "qrs", "instance_prompt": "photo of qrs toy"}
    named = client.predict(files, SAMPLE_SET, *typed.values(), 512, api_name="/upload_photos")[0]
    assert photo_set(opened.workspace, named).words().instance_prompt == "photo of qrs toy"


def test_a_stored_photo_that_was_damaged_hides_no_other(opened: OpenPage, client: Client, photos: list[Path]) -> None:
    kept = photo_set(opened.workspace, uploaded(client, photos[:3]))
    kept.photos()[1].write_bytes(b"cut")
    events = RawEvents(opened.url)
    (shown,) = events.call("photo_views", [kept.name, "", 96])
    assert shown.as_html.count("as it is trained") == 2
    assert "is not a readable photo" in shown.as_html
    assert "data-code='unreadable'" in shown.as_html


def test_an_upload_decodes_each_file_once(
    client: Client, opened: OpenPage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PNG's copy holds the same pixels; a JPEG's is another picture, which is the one that is trained and checked."""
    for number in (11, 12):
        made_photo(number).save(tmp_path / f"{number}.{'png' if number == 11 else 'jpg'}")
    counts = count_decodes(monkeypatch)
    name = uploaded(client, sorted(tmp_path.iterdir()))
    (jpeg,) = (opened.workspace.datasets_dir / name).glob("*.jpg")
    assert dict(counts) == {"11.png": 1, "12.jpg": 1, jpeg.name: 1}


def test_the_cards_read_a_set_once(opened: OpenPage) -> None:
    """However many photos it holds: the folder's list, what is known of them, and each caption."""
    folder = opened.workspace.datasets_dir / "many"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (40, 40), (number * 20, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"dog {number}\n")
    write_json(folder / "photos.json", {f"{number}.png": {"name": "dog.png", "notes": []} for number in range(12)})
    write_json(folder / "focus.json", {f"{number}.png": {"x": 0.5, "y": 0.5, "zoom": 1} for number in range(12)})
    with counted_reads(folder) as reads:
        (answer,) = RawEvents(opened.url).call("photo_views", ["many", None, 32])
    assert "dog 11" in answer.as_html
    assert {name: reads[name] for name in ("many", "photos.json", "focus.json", "3.txt")} == {
        "many": 1, "photos.json": 1, "focus.json": 1, "3.txt": 1,
    }  # fmt: skip
