"""The grid of a run's samples: what stands where, and every run on which the seed notebook's own cell stops."""

from pathlib import Path

import pytest
from PIL import Image, ImageChops

from dreambooth.errors import RunFolderError
from dreambooth.pictures import grid as grids
from dreambooth.pictures.grid import GAP_PX, sample_grid, step_label, write_sample_grid
from dreambooth.records.workspace import RunFolder

PX = 32


def color(step: int, column: int) -> tuple[int, int, int]:
    """Return the color of a picture, another one for each step and column."""
    return (20 + step * 37 % 200, 20 + column * 51 % 200, 90)


def picture(run: Path, step: int | str, name: str, size: tuple[int, int] = (PX, PX)) -> None:
    """Write a sample of one color."""
    folder = run / str(step) / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    column = int(name.removesuffix(".png")) if name.removesuffix(".png").isdecimal() else 0
    Image.new("RGB", size, color(int(step) if str(step).isdecimal() else 0, column)).save(folder / name)


def run_with(folder: Path, samples: dict[int, list[int]]) -> Path:
    """Return a run that has these samples of these steps."""
    for step, columns in samples.items():
        for column in columns:
            picture(folder, step, f"{column}.png")
    return folder


def cells(grid: Image.Image, num_rows: int, num_columns: int, px: int = PX) -> list[list[Image.Image]]:
    """Cut the pictures out of a grid; they stand right of the labels, in the middle of their rows."""
    left = grid.width - num_columns * (px + GAP_PX)
    row_height = (grid.height - GAP_PX) // num_rows
    top = GAP_PX + (row_height - GAP_PX - px) // 2
    corners = [[(left + x * (px + GAP_PX), top + y * row_height) for x in range(num_columns)] for y in range(num_rows)]
    return [[grid.crop((x, y, x + px, y + px)) for x, y in row] for row in corners]


def label(grid: Image.Image, row: int, num_rows: int, num_columns: int) -> Image.Image:
    """Cut a row's label out of a grid, without what is white around it."""
    height = (grid.height - GAP_PX) // num_rows
    found = grid.crop((0, row * height, grid.width - num_columns * (PX + GAP_PX), (row + 1) * height))
    return found.crop(ImageChops.invert(found).getbbox())


def shown(cell: Image.Image) -> tuple[int, int, int] | None:
    """Return the one color of a cell, None for a blank one."""
    colors = cell.getcolors()
    assert colors is not None, "several colors"
    assert len(colors) == 1, "not one picture's color"
    found: tuple[int, int, int] = colors[0][1]  # type: ignore[assignment]
    return None if found == (255, 255, 255) else found


def shown_in(grid: Image.Image, num_rows: int, num_columns: int) -> list[list[tuple[int, int, int] | None]]:
    """Return the colors of all cells."""
    return [[shown(cell) for cell in row] for row in cells(grid, num_rows, num_columns)]


def test_rows_are_steps_and_columns_samples_both_in_natural_order(tmp_path: Path) -> None:
    columns = [0, 1, 2, 10]
    run = run_with(tmp_path / "run", {10: columns, 0: columns, 2: columns})
    expected = [[color(step, column) for column in columns] for step in (0, 2, 10)]
    assert shown_in(sample_grid(RunFolder(run)), 3, 4) == expected


def test_every_row_says_its_step_and_the_first_that_nothing_was_taught(tmp_path: Path) -> None:
    grid = sample_grid(RunFolder(run_with(tmp_path / "run", {0: [0], 2: [0], 10: [0]})))
    labels = [label(grid, row, 3, 1) for row in range(3)]
    # Each is what a grid with that row alone says, and no two say the same.
    for step, own in zip((0, 2, 10), labels, strict=True):
        alone = sample_grid(RunFolder(run_with(tmp_path / f"run {step}", {step: [0]})))
        assert label(alone, 0, 1, 1).tobytes() == own.tobytes()
    assert len({own.tobytes() for own in labels}) == 3
    assert [step_label(step) for step in (0, 2, 10)] == ["step 0\nbase model", "step 2", "step 10"]


def test_pictures_keep_their_size_and_pixels(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", {5: [0]})
    gradient = Image.merge("RGB", [Image.linear_gradient("L").resize((48, 48)).rotate(90 * turn) for turn in range(3)])
    gradient.save(run / "5" / "samples" / "0.png")
    cell = cells(sample_grid(RunFolder(run)), 1, 1, 48)[0][0]
    assert cell.tobytes() == gradient.tobytes()


@pytest.mark.parametrize("steps", [[7], [0, 7], [0, 7, 14]])
def test_one_sample_a_step(tmp_path: Path, steps: list[int]) -> None:
    run = run_with(tmp_path / "run", dict.fromkeys(steps, [0]))
    assert shown_in(sample_grid(RunFolder(run)), len(steps), 1) == [[color(step, 0)] for step in steps]


def test_uneven_counts_leave_blanks_and_shift_nothing(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", {0: [0], 2: [0, 1, 2], 4: [0, 2]})
    assert shown_in(sample_grid(RunFolder(run)), 3, 3) == [
        [color(0, 0), None, None],
        [color(2, 0), color(2, 1), color(2, 2)],
        [color(4, 0), None, color(4, 2)],
    ]


def test_steps_without_samples_have_no_row(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", {2: [0], 6: [0]})
    (run / "4").mkdir()
    (run / "5" / "samples").mkdir(parents=True)
    (run / "0" / "logs").mkdir(parents=True)
    assert shown_in(sample_grid(RunFolder(run)), 2, 1) == [[color(2, 0)], [color(6, 0)]]


def test_names_that_are_no_numbers_are_passed_over(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", {2: [0]})
    for folder in ("logs", ".run", ".3.1-00000000", "step 9", "1.5", "-4"):
        picture(run, folder, "0.png")
    (run / "model.ckpt").write_bytes(b"x")
    (run / "8").write_bytes(b"a file, no folder")
    picture(run, 2, "mine.png")
    (run / "2" / "samples" / ".DS_Store").write_bytes(b"x")
    (run / "2" / "samples" / "0.txt").write_text("x")
    assert shown_in(sample_grid(RunFolder(run)), 1, 1) == [[color(2, 0)]]


def test_damaged_pictures_stay_blank(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", {2: [0, 1], 4: [0, 1]})
    (run / "2" / "samples" / "1.png").write_bytes(b"no picture")
    half = run / "4" / "samples" / "0.png"
    Image.effect_noise((PX, PX), 50).convert("RGB").save(half)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    assert shown_in(sample_grid(RunFolder(run)), 2, 2) == [[color(2, 0), None], [None, color(4, 1)]]


def test_another_size_and_another_mode_stand_in_the_middle_of_their_cells(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", {2: [0]})
    picture(run, 4, "0.png", (PX // 2, PX // 2))
    Image.new("L", (PX, PX), 77).save(run / "2" / "samples" / "1.png")
    grid = cells(sample_grid(RunFolder(run)), 2, 2)
    quarter = PX // 4
    assert shown(grid[1][0].crop((quarter, quarter, 3 * quarter, 3 * quarter))) == color(4, 0)
    assert shown(grid[1][0].crop((0, 0, PX, quarter))) is None
    assert shown(grid[0][1]) == (77, 77, 77)


def test_many_pictures_are_scaled_down_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "MAX_PIXELS", 3 * 4 * (PX // 2) ** 2)
    run = run_with(tmp_path / "run", {step: [0, 1, 2, 3] for step in (0, 2, 4)})
    found = cells(sample_grid(RunFolder(run)), 3, 4, PX // 2)
    assert [[shown(cell) for cell in row] for row in found] == [
        [color(step, column) for column in range(4)] for step in (0, 2, 4)
    ]


def test_the_usual_grid_is_not_scaled_and_a_long_runs_stays_in_bounds(tmp_path: Path) -> None:
    # 800 steps saved every 200, four samples of 512 px; then 400 saves.
    assert grids._scale(4 * 512, 5 * 512) == 1
    scale = grids._scale(4 * 512, 400 * 512)
    assert 400 * 512 * scale <= grids.MAX_SIDE_PX
    assert 4 * 512 * scale > 100
    run = tmp_path / "run"
    for step in range(60):
        picture(run, step, "0.png", (512, 512))
    grid = sample_grid(RunFolder(run))
    assert grid.width * grid.height < 1.5 * grids.MAX_PIXELS
    assert grid.height <= grids.MAX_SIDE_PX + 61 * GAP_PX


@pytest.mark.parametrize("kind", ["absent", "empty", "no samples", "damaged only"])
def test_a_run_without_samples_is_told_in_words(tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    if kind != "absent":
        run.mkdir()
    if kind == "no samples":
        (run / "200").mkdir()
    if kind == "damaged only":
        (run / "200" / "samples").mkdir(parents=True)
        (run / "200" / "samples" / "0.png").write_bytes(b"")
    with pytest.raises(RunFolderError) as caught:
        write_sample_grid(run, tmp_path / "grid.png")
    assert str(run) in caught.value.what
    assert "--save_sample_prompt" in caught.value.why
    assert caught.value.todo
    assert not (tmp_path / "grid.png").exists()


def test_the_file_is_a_png_and_replaces_an_older_one(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", {0: [0, 1], 2: [0, 1]})
    out = tmp_path / "new" / "grid.png"
    for _ in range(2):
        assert write_sample_grid(run, out) == out
    with Image.open(out) as image:
        assert image.format == "PNG"
        assert image.convert("RGB").tobytes() == sample_grid(RunFolder(run)).tobytes()
    assert [entry.name for entry in out.parent.iterdir()] == ["grid.png"]
    (tmp_path / "folder").mkdir()
    assert write_sample_grid(run, tmp_path / "folder") == tmp_path / "folder" / "grid.png"
    assert write_sample_grid(run, tmp_path / "grid.jpg") == tmp_path / "grid.jpg.png"


def test_a_write_that_fails_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with(tmp_path / "run", {0: [0]})
    out = tmp_path / "out" / "grid.png"
    out.parent.mkdir()
    out.write_bytes(b"older")

    def fail(self: Image.Image, path: Path, **options: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no room")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="no room"):
        write_sample_grid(run, out)
    assert out.read_bytes() == b"older"
    assert [entry.name for entry in out.parent.iterdir()] == ["grid.png"]
