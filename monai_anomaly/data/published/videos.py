"""Surveillance videos, frame by frame: UCSD Ped2, CUHK Avenue and ShanghaiTech Campus.

Clips are groups and frame numbers positions, so that scores can be judged by clip. All training frames are normal;
frames of the test clips are abnormal where the publisher marks something in them.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.image_files import list_pictures, natural_key, read_mask, read_picture

from .base import ImageSet, Problem, PublishedSet
from .layout import files_by_stem, find_folder, folder_pictures

__all__ = ["Avenue", "Ped2", "ShanghaiTech", "VideoSet"]

_VIDEO_SUFFIXES = (".avi", ".mp4", ".mov", ".mkv")


@dataclass(frozen=True)
class Clip:
    """The frames of one clip.

    Args:
        name: of its folder.
        frames: their files, in order.
        numbers: of the frames, as their files say, in order.
    """

    name: str
    frames: tuple[Path, ...]
    numbers: tuple[int, ...]


class VideoSet(PublishedSet):
    """Clips of frames in folders, normal ones to train on and marked ones to test."""

    folders: ClassVar[dict[str, str]]  # of each side, with a folder for each clip
    videos: ClassVar[dict[str, tuple[str, ...]]] = {}  # of each side, where clips lie as video files
    clip_pattern: ClassVar[str] = r"[^.].*"
    published: ClassVar[dict[str, tuple[int, int]]]  # clips and frames of each side
    protocol = "All frames of the training clips train, all of the test clips test; scores are judged by clip."

    @property
    def problems(self) -> tuple[str, ...]:
        return ("all",)

    def problem(self, name: str) -> Problem:
        """The one problem of the set.

        Args:
            name: ``"all"``.

        Raises:
            InputError: if there is no such problem, or files are missing, too few, or not as published.
        """
        self.require(name)
        training = self._clips("training")
        test, facts = self._test(self._clips("test"))
        for label, what in ((0, "normal"), (1, "abnormal")):
            if not (test.labels == label).any():
                raise InputError(self.root, f"{self.title}: no test frame is {what}", self.how_to_get())
        clips = {"training": len(training), "test": len(set(test.groups))}
        sides = {"clips": clips, **facts}
        return Problem(name, self._pictures(training), test, video=True, facts=sides)

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
    def _test(self, clips: list[Clip]) -> tuple[ImageSet, dict]:
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
        order = np.argsort(numbers)
        return Clip(folder.name, tuple(frames[i] for i in order), tuple(numbers[i] for i in order))

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
        return self.missing(frames)

    def _pictures(self, clips: list[Clip], labels: list[int] | None = None, **more: list) -> ImageSet:
        frames = [frame for clip in clips for frame in clip.frames]
        return folder_pictures(
            self.root,
            frames,
            [0] * len(frames) if labels is None else labels,
            groups=[clip.name for clip in clips for _ in clip.frames],
            positions=[number for clip in clips for number in clip.numbers],
            **more,
        )


class Ped2(VideoSet):
    """UCSD Ped2: pedestrians on a walkway; bicycles, skaters and carts are abnormal."""

    key = "ped2"
    title = "UCSD Ped2"
    source = "http://www.svcl.ucsd.edu/projects/anomaly/dataset.htm"
    licence = "none stated; research use, citation asked for"
    citation = "Mahadevan et al., Anomaly detection in crowded scenes, CVPR 2010"
    by_hand = (
        "Fetch UCSD_Anomaly_Dataset.tar.gz from http://www.svcl.ucsd.edu/projects/anomaly/dataset.htm, unpack it, and "
        "name the folder UCSD_Anomaly_Dataset.v1p2 or its UCSDped2 (no licence is stated: research use)."
    )
    folders: ClassVar[dict[str, str]] = {"training": "Train", "test": "Test"}
    clip_pattern = r"(Train|Test)[0-9]+"
    published: ClassVar[dict[str, tuple[int, int]]] = {"training": (16, 2550), "test": (12, 2010)}

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        inner = find_folder(self.root, "UCSDped2", "UCSD_Anomaly_Dataset.v1p2/UCSDped2")
        self.root = self.root if inner is None else inner
        self._marked: dict[Path, bool] = {}

    def check(self) -> list[str]:
        notes = super().check()
        clips = self._clips("test")
        masks = self._masks(clips)
        without = sum(mask is None for mask in masks)
        if without:
            notes.append(f"{self.root}: {without} of {len(masks)} test frames have no mask")
        listed = self._listed(clips)
        if listed is not None and not without:
            differ = sum(a != b for a, b in zip(listed, self._from_masks(masks)))
            if differ:
                notes.append(f"{self.root}: {differ} frame labels of UCSDped2.m differ from the masks")
        return notes

    def _test(self, clips: list[Clip]) -> tuple[ImageSet, dict]:
        masks = self._masks(clips)
        complete = all(mask is not None for mask in masks)
        labels, origin = self._listed(clips), "UCSDped2.m"
        if labels is None:
            if not complete:
                clip = next(clip for clip in clips if None in self._masks([clip]))
                raise InputError(
                    self.root / "Test" / f"{clip.name}_gt",
                    "does not have a mask of each frame, and there is no Test/UCSDped2.m",
                    self.how_to_get(),
                )
            labels, origin = self._from_masks(masks), "masks"
        more = {"masks": list(masks)} if complete else {}
        return self._pictures(clips, labels, **more), {"labels_from": origin}

    def _masks(self, clips: list[Clip]) -> list[Path | None]:
        found: list[Path | None] = []
        for clip in clips:
            folder = self.root / "Test" / f"{clip.name}_gt"
            masks = files_by_stem(folder) if folder.is_dir() else {}
            found += [masks.get(frame.stem) for frame in clip.frames]
        return found

    def _from_masks(self, masks: list[Path | None]) -> list[int]:
        labels = []
        for mask in masks:
            assert mask is not None
            if mask not in self._marked:
                self._marked[mask] = bool(read_mask(mask).any())
            labels.append(int(self._marked[mask]))
        return labels

    def _listed(self, clips: list[Clip]) -> list[int] | None:
        """Frame labels of the published list, None without one; it counts clips and frames from 1."""
        path = self.root / "Test" / "UCSDped2.m"
        if not path.is_file():
            return None
        text = re.sub(r"%.*", "", path.read_text(encoding="latin-1"))
        entries = re.findall(r"gt_frame\s*=\s*\[([^\]]*)\]", text)
        labels = []
        for clip in clips:
            index = int(re.sub(r"\D", "", clip.name))
            if not 1 <= index <= len(entries):
                problem = f"lists {len(entries)} clips, and {clip.name} is none of them"
                raise InputError(path, problem, self.how_to_get())
            ranges = []
            for part in re.split(r"[,;\s]+", entries[index - 1].strip()):
                match = re.fullmatch(r"([0-9]+)(?::([0-9]+))?", part)
                if match is None:
                    raise InputError(path, f"cannot be read at clip {index}: {part!r}", self.how_to_get())
                ranges.append((int(match[1]), int(match[2] or match[1])))
            labels += [int(any(a <= number <= b for a, b in ranges)) for number in clip.numbers]
        return labels


class _CountedSet(VideoSet):
    """Test clips whose labels are arrays over all frames of a clip."""

    def _test(self, clips: list[Clip]) -> tuple[ImageSet, dict]:
        base = min(clip.numbers[0] for clip in clips)
        if base not in (0, 1):
            raise InputError(
                self.root, f"the first test frame has number {base}", "Count frames from 0 or 1, as published."
            )
        labels: list[int] = []
        places: list[tuple[Clip, int, Path]] = []
        for clip in clips:
            marked = self._frame_labels(clip)
            if clip.numbers[-1] - base >= len(marked):
                problem = f"has frame {clip.numbers[-1]} (counted from {base}), and its labels are of {len(marked)}"
                raise InputError(clip.frames[0].parent, problem, "Extract all frames, each once.")
            labels += [int(marked[number - base]) for number in clip.numbers]
            places += [(clip, number - base, frame) for number, frame in zip(clip.numbers, clip.frames)]
        pictures = self._pictures(clips, labels)
        if all(self._has_masks(clip) for clip in clips):
            read = partial(self._mask, places)
            pictures = ImageSet(**{**vars(pictures), "read_mask": read})
        return pictures, {"first_frame": base}

    @abstractmethod
    def _frame_labels(self, clip: Clip) -> np.ndarray:
        """Shape (frames of the whole clip,), bool."""

    @abstractmethod
    def _has_masks(self, clip: Clip) -> bool: ...

    @abstractmethod
    def _frame_mask(self, clip: Clip, index: int) -> np.ndarray:
        """Shape (H, W), bool."""

    def _mask(self, places: list[tuple[Clip, int, Path]], index: int) -> np.ndarray:
        clip, place, frame = places[index]
        mask = self._frame_mask(clip, place)
        size = read_picture(frame).shape[:2]
        if mask.shape != size:
            raise InputError(frame, f"has size {size} and its mask {mask.shape}", "Extract frames at full size.")
        return mask


class Avenue(_CountedSet):
    """CUHK Avenue: people in front of a station; running, throwing and loitering are abnormal."""

    key = "avenue"
    title = "CUHK Avenue"
    source = "http://www.cse.cuhk.edu.hk/leojia/projects/detectabnormal/dataset.html"
    licence = "none stated; research use, citation asked for"
    citation = "Lu, Shi, Jia, Abnormal event detection at 150 FPS in Matlab, ICCV 2013"
    by_hand = (
        "Fetch Avenue_Dataset.zip and ground_truth_demo.zip from "
        "http://www.cse.cuhk.edu.hk/leojia/projects/detectabnormal/dataset.html, unpack both into one folder, and "
        "extract the frames of each video to training/frames/<video> and testing/frames/<video> (no licence is stated: "
        "research use)."
    )
    folders: ClassVar[dict[str, str]] = {"training": "training/frames", "test": "testing/frames"}
    videos: ClassVar[dict[str, tuple[str, ...]]] = {
        "training": ("training_videos", "Avenue Dataset/training_videos", "training/videos"),
        "test": ("testing_videos", "Avenue Dataset/testing_videos", "testing/videos"),
    }
    published: ClassVar[dict[str, tuple[int, int]]] = {"training": (16, 15328), "test": (21, 15324)}

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        self._labels: dict[Path, np.ndarray] = {}

    def _file(self, clip: Clip) -> Path:
        folder = find_folder(
            self.root, "testing_label_mask", "ground_truth_demo/testing_label_mask", "testing/testing_label_mask"
        )
        digits = re.sub(r"\D", "", clip.name)
        path = (folder or self.root / "testing_label_mask") / f"{int(digits or 0)}_label.mat"
        if not path.is_file():
            raise self.missing(path)
        return path

    def _frame_labels(self, clip: Clip) -> np.ndarray:
        path = self._file(clip)
        if path not in self._labels:
            self._labels[path] = np.array([bool(mask.any()) for mask in _volume_labels(path)])
        return self._labels[path]

    def _has_masks(self, clip: Clip) -> bool:
        return True

    def _frame_mask(self, clip: Clip, index: int) -> np.ndarray:
        return _volume_labels(self._file(clip))[index] > 0


class ShanghaiTech(_CountedSet):
    """ShanghaiTech Campus: thirteen scenes; vehicles, chasing and fighting are abnormal."""

    key = "shanghaitech"
    title = "ShanghaiTech Campus"
    source = "https://svip-lab.github.io/dataset/campus_dataset.html"
    licence = "none stated; research use, citation asked for"
    citation = "Luo, Liu, Gao, A revisit of sparse coding based anomaly detection in stacked RNN framework, ICCV 2017"
    by_hand = (
        "Fetch the archive linked from https://svip-lab.github.io/dataset/campus_dataset.html, unpack it, and extract "
        "the frames of each training video to training/frames/<video> (no licence is stated: research use)."
    )
    folders: ClassVar[dict[str, str]] = {"training": "training/frames", "test": "testing/frames"}
    videos: ClassVar[dict[str, tuple[str, ...]]] = {"training": ("training/videos",), "test": ("testing/videos",)}
    published: ClassVar[dict[str, tuple[int, int]]] = {"training": (330, 274515), "test": (107, 40791)}

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        inner = find_folder(self.root, "shanghaitech")
        self.root = self.root if inner is None else inner

    def _array(self, clip: Clip, kind: str) -> Path:
        name = f"{clip.name}.npy"
        return next(
            (path for path in (self.root / "testing" / kind / name, self.root / kind / name) if path.is_file()),
            self.root / "testing" / kind / name,
        )

    def _frame_labels(self, clip: Clip) -> np.ndarray:
        path = self._array(clip, "test_frame_mask")
        if not path.is_file():
            raise self.missing(path)
        labels = _load_array(path)
        if labels.ndim != 1 or not np.isin(labels, (0, 1)).all():
            raise InputError(path, f"is no list of 0 and 1, but of shape {labels.shape}", self.how_to_get())
        return labels.astype(bool)

    def _has_masks(self, clip: Clip) -> bool:
        return self._array(clip, "test_pixel_mask").is_file()

    def _frame_mask(self, clip: Clip, index: int) -> np.ndarray:
        path = self._array(clip, "test_pixel_mask")
        masks, count = _load_array(path), len(self._frame_labels(clip))
        if masks.ndim != 3 or len(masks) != count:
            raise InputError(path, f"has shape {masks.shape}, not one mask of {count} frames", self.how_to_get())
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
