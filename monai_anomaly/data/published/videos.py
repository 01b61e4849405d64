"""Surveillance videos, frame by frame: UCSD Ped2, CUHK Avenue and ShanghaiTech Campus.

Clips are groups and frame numbers positions, so that scores can be judged by clip. All training frames are normal;
frames of the test clips are abnormal where the publisher marks something in them.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.image_files import list_pictures, natural_key, picture_size

from .base import find_folder
from .layout import FileSet, ImageFile, Sides, files_by_stem

__all__ = ["Avenue", "Ped2", "ShanghaiTech", "VideoSet"]

_VIDEO_SUFFIXES = (".avi", ".mp4", ".mov", ".mkv")


@dataclass(frozen=True)
class Clip:
    """The frames of one clip.

    Args:
        name: of its folder.
        frames: in the order of their numbers, which are their positions.
    """

    name: str
    frames: tuple[ImageFile, ...]


class VideoSet(FileSet):
    """Clips of frames in folders, normal ones to train on and marked ones to test."""

    apart = False
    video = True
    folders: ClassVar[dict[str, str]]  # of each side, with a folder for each clip
    videos: ClassVar[dict[str, tuple[str, ...]]] = {}  # of each side, where clips lie as video files
    clip_pattern: ClassVar[str] = r"[^.].*"
    published: ClassVar[dict[str, tuple[int, int]]]  # clips and frames of each side
    protocol = "All frames of the training clips train, all of the test clips test; scores are judged by clip."

    def _sides(self, name: str) -> Sides:
        training, clips = self._clips("training"), self._clips("test")
        test, facts = self._test(clips)
        for label, what in ((False, "normal"), (True, "abnormal")):
            if not any(file.abnormal is label for file in test):
                raise self.wrong(self.root, f"{self.title}: no test frame is {what}")
        counts = {"clips": {"training": len(training), "test": len(clips)}}
        return Sides([frame for clip in training for frame in clip.frames], test, {**counts, **facts})

    def check(self) -> list[str]:
        notes = super().check()
        sides = {"training": self._clips("training"), "test": self._clips("test")}
        for side, (clips, frames) in self.published.items():
            found = sum(len(clip.frames) for clip in sides[side])
            if (len(sides[side]), found) != (clips, frames):
                notes.append(
                    f"{self.root}: {side} has {len(sides[side])} clips with {found} frames, published are {clips} "
                    f"with {frames}"
                )
        return notes

    @abstractmethod
    def _test(self, clips: list[Clip]) -> tuple[list[ImageFile], dict]:
        """The marked test frames, and what to state about their labels."""

    def _clips(self, side: str) -> list[Clip]:
        """The clips of a side, in natural order.

        Raises:
            InputError: if there is none, or a clip has no frame, or a frame has no number of its own.
        """
        folder = self.root / self.folders[side]
        pattern = re.compile(self.clip_pattern)
        found = [path for path in _files(folder) if path.is_dir() and pattern.fullmatch(path.name)]
        if not found:
            raise self._no_frames(side)
        return [self._clip(path) for path in found]

    def _clip(self, folder: Path) -> Clip:
        frames = list_pictures(folder)
        if not frames:
            raise InputError(folder, "holds no frame", "Fetch or extract the clip again.")
        numbers = []
        for frame in frames:
            digits = re.search(r"[0-9]+(?=\D*$)", frame.stem)
            if digits is None:
                raise InputError(frame, "has no number", "Name frames by their numbers, as published.")
            numbers.append(int(digits.group()))
        if len(set(numbers)) < len(numbers):
            raise InputError(folder, "two frames have the same number", "Leave one file for each frame.")
        files = [ImageFile(path, group=folder.name, position=n) for n, path in sorted(zip(numbers, frames))]
        return Clip(folder.name, tuple(files))

    def _no_frames(self, side: str) -> InputError:
        """The error for a side without frames: missing, or still packed in video files."""
        frames = self.root / self.folders[side]
        for videos in (self.root / name for name in self.videos.get(side, ())):
            files = [path for path in _files(videos) if path.suffix.lower() in _VIDEO_SUFFIXES]
            if files:
                target = frames / files[0].stem
                return InputError(
                    videos,
                    f"holds {len(files)} videos, which are not decoded here",
                    f"Extract the frames of each: mkdir -p '{target}' && ffmpeg -i '{files[0]}' -vsync 0 "
                    f"-start_number 0 '{target}/%04d.png'",
                )
        return self.wrong(frames, f"is missing, it is part of {self.title}")


class Ped2(VideoSet, key="ped2"):
    """UCSD Ped2: pedestrians on a walkway; bicycles, skaters and carts are abnormal."""

    clip_pattern = r"(Train|Test)[0-9]+"

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        self._marked: dict[Path, bool] = {}

    def check(self) -> list[str]:
        notes = super().check()
        frames, complete = self._masked(self._clips("test"))
        listed = self._listed(frames)
        if not complete:
            without = sum(frame.mask is None for frame in frames)
            notes.append(f"{self.root}: {without} of {len(frames)} test frames have no mask")
        elif listed is not None and (differ := sum(a != b for a, b in zip(listed, self._from_masks(frames)))):
            notes.append(f"{self.root}: {differ} frame labels of UCSDped2.m differ from the masks")
        return notes

    def _test(self, clips: list[Clip]) -> tuple[list[ImageFile], dict]:
        frames, complete = self._masked(clips)
        labels, origin = self._listed(frames), "UCSDped2.m"
        if labels is None:
            if not complete:
                clip = next(frame.group for frame in frames if frame.mask is None)
                problem = "does not have a mask of each frame, and there is no Test/UCSDped2.m"
                raise self.wrong(self.root / "Test" / f"{clip}_gt", problem)
            labels, origin = self._from_masks(frames), "masks"
        marked = [
            replace(frame, abnormal=label, mask=frame.mask if complete else None)
            for frame, label in zip(frames, labels)
        ]
        return marked, {"labels_from": origin}

    def _masked(self, clips: list[Clip]) -> tuple[list[ImageFile], bool]:
        """The frames with the masks that are there, and whether each has one."""
        found: list[ImageFile] = []
        for clip in clips:
            masks = files_by_stem(self.root / "Test" / f"{clip.name}_gt")
            found += [replace(frame, mask=masks.get(frame.path.stem)) for frame in clip.frames]
        return found, all(frame.mask is not None for frame in found)

    def _from_masks(self, frames: list[ImageFile]) -> list[bool]:
        for frame in frames:
            if frame.path not in self._marked:
                self._marked[frame.path] = bool(frame.read_mask().any())
        return [self._marked[frame.path] for frame in frames]

    def _listed(self, frames: list[ImageFile]) -> list[bool] | None:
        """Frame labels of the published list, None without one; it counts clips and frames from 1."""
        path = self.root / "Test" / "UCSDped2.m"
        if not path.is_file():
            return None
        text = re.sub(r"%.*", "", path.read_text(encoding="latin-1"))
        entries = re.findall(r"gt_frame\s*=\s*\[([^\]]*)\]", text)
        ranges: dict[str, list[tuple[int, int]]] = {}
        for clip in dict.fromkeys(frame.group for frame in frames):
            index = int(re.sub(r"\D", "", clip))
            if not 1 <= index <= len(entries):
                raise self.wrong(path, f"lists {len(entries)} clips, and {clip} is none of them")
            ranges[clip] = []
            for part in re.split(r"[,;\s]+", entries[index - 1].strip()):
                match = re.fullmatch(r"([0-9]+)(?::([0-9]+))?", part)
                if match is None:
                    raise self.wrong(path, f"cannot be read at clip {index}: {part!r}")
                ranges[clip].append((int(match[1]), int(match[2] or match[1])))
        return [any(a <= (frame.position or 0) <= b for a, b in ranges[frame.group]) for frame in frames]


class _CountedSet(VideoSet):
    """Test clips whose labels are arrays over all frames of a clip."""

    def _test(self, clips: list[Clip]) -> tuple[list[ImageFile], dict]:
        base = min(clip.frames[0].position or 0 for clip in clips)
        if base not in (0, 1):
            problem = f"the first test frame has number {base}"
            raise InputError(self.root, problem, "Count frames from 0 or 1, as published.")
        masked = all(self._has_masks(clip) for clip in clips)
        test: list[ImageFile] = []
        for clip in clips:
            marked = self._frame_labels(clip)
            for frame in clip.frames:
                place = (frame.position or 0) - base
                if place >= len(marked):
                    problem = f"has frame {frame.position} (counted from {base}), and its labels are of {len(marked)}"
                    raise InputError(frame.path.parent, problem, "Extract all frames, each once.")
                mask = partial(self._mask, clip, place, frame.path) if masked else None
                test.append(replace(frame, abnormal=bool(marked[place]), mask=mask))
        return test, {"first_frame": base}

    @abstractmethod
    def _frame_labels(self, clip: Clip) -> np.ndarray:
        """Shape (frames of the whole clip,), bool."""

    @abstractmethod
    def _has_masks(self, clip: Clip) -> bool: ...

    @abstractmethod
    def _frame_mask(self, clip: Clip, index: int) -> np.ndarray:
        """Shape (H, W), bool."""

    def _mask(self, clip: Clip, place: int, frame: Path) -> np.ndarray:
        mask, size = self._frame_mask(clip, place), picture_size(frame)
        if mask.shape != size:
            raise InputError(frame, f"has size {size} and its mask {mask.shape}", "Extract frames at full size.")
        return mask


class Avenue(_CountedSet, key="avenue"):
    """CUHK Avenue: people in front of a station; running, throwing and loitering are abnormal."""

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        self._labels: dict[Path, np.ndarray] = {}

    def _file(self, clip: Clip) -> Path:
        folder = find_folder(
            self.root, "testing_label_mask", "ground_truth_demo/testing_label_mask", "testing/testing_label_mask"
        )
        digits = re.sub(r"\D", "", clip.name)
        return self.there((folder or self.root / "testing_label_mask") / f"{int(digits or 0)}_label.mat")

    def _frame_labels(self, clip: Clip) -> np.ndarray:
        path = self._file(clip)
        if path not in self._labels:
            self._labels[path] = np.array([bool(mask.any()) for mask in _volume_labels(path)])
        return self._labels[path]

    def _has_masks(self, clip: Clip) -> bool:
        return True

    def _frame_mask(self, clip: Clip, index: int) -> np.ndarray:
        return _volume_labels(self._file(clip))[index] > 0


class ShanghaiTech(_CountedSet, key="shanghaitech"):
    """ShanghaiTech Campus: thirteen scenes; vehicles, chasing and fighting are abnormal."""

    def _array(self, clip: Clip, kind: str) -> Path:
        name = f"{clip.name}.npy"
        return next(
            (path for path in (self.root / "testing" / kind / name, self.root / kind / name) if path.is_file()),
            self.root / "testing" / kind / name,
        )

    def _frame_labels(self, clip: Clip) -> np.ndarray:
        path = self.there(self._array(clip, "test_frame_mask"))
        labels = _load_array(path)
        if labels.ndim != 1 or not np.isin(labels, (0, 1)).all():
            raise self.wrong(path, f"is no list of 0 and 1, but of shape {labels.shape}")
        return labels.astype(bool)

    def _has_masks(self, clip: Clip) -> bool:
        return self._array(clip, "test_pixel_mask").is_file()

    def _frame_mask(self, clip: Clip, index: int) -> np.ndarray:
        path = self._array(clip, "test_pixel_mask")
        masks, count = _load_array(path), len(self._frame_labels(clip))
        if masks.ndim != 3 or len(masks) != count:
            raise self.wrong(path, f"has shape {masks.shape}, not one mask of {count} frames")
        return np.asarray(masks[index]) > 0


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda path: natural_key(path.name)) if folder.is_dir() else []


@lru_cache(maxsize=1)
def _volume_labels(path: Path) -> list[np.ndarray]:
    """The masks of a clip; the last clip's are kept, since frames are read in turn."""
    from scipy.io import loadmat

    remedy = "Fetch ground_truth_demo.zip again."
    try:
        content = loadmat(path)
    except Exception as error:  # a broken file meets errors of the file, of zlib and scipy's own
        raise InputError(path, f"cannot be read as MATLAB file ({type(error).__name__}: {error})", remedy) from error
    if "volLabel" not in content or content["volLabel"].dtype != object:
        raise InputError(path, "has no cell array volLabel", remedy)
    masks = [np.asarray(mask) for mask in content["volLabel"].ravel()]
    if not masks or any(mask.ndim != 2 or mask.shape != masks[0].shape for mask in masks):
        raise InputError(path, "volLabel holds no masks of one size", remedy)
    return masks


def _load_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(path, f"cannot be read as NumPy array ({error})", "Fetch the file again.") from error
