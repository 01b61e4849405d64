"""How the demonstration brains are simulated: T1-weighted scans, with and without lesions.

Every subject is the MNI152 average brain [1]_ (carried by nilearn, so nothing is downloaded) under a random
free-form deformation [2]_, with its own tissue contrast, texture, bias field and Rician noise [3]_, sampled on an
oblique clinical grid of thick slices and cut out of its head, as brains are shared after brain extraction. Lesions are
drawn into the anatomy before bias and noise. Everything follows from the seed alone; nothing was fitted to any
detector.

References:
    .. [1] Fonov V. et al. "Unbiased average age-appropriate atlases for pediatric studies". NeuroImage 54(1),
       313-327, 2011.
    .. [2] Rueckert D. et al. "Nonrigid registration using free-form deformations: application to breast MR images".
       IEEE TMI 18(8), 712-721, 1999.
    .. [3] Gudbjartsson H., Patz S. "The Rician distribution of noisy MRI data". MRM 34(6), 910-914, 1995.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["GROUPS", "SHAPE", "SIMULATION_VERSION", "SimulatedScan", "load_anatomy", "simulate"]

# Raised whenever the simulated voxels change, so that an older cohort is not taken for the present one.
SIMULATION_VERSION = 2
# Columns, rows, slices: 2 mm in the plane and slices of 5 to 6 mm, as a fast clinical T1 series.
SHAPE = (80, 96, 24)
# Samples averaged through each slice for its partial-volume effect.
SUBSLICES = 3
# Width (mm) of the soft edge between tissues: under half a pixel, so that edges are neither jagged nor blurred.
EDGE = 0.7
# Width (mm) of fluid that brain extraction leaves around the brain's hull.
HULL = 1.5
# Kinds of lesion; the first lesion of abnormal subject i is of kind i modulo their number, so all of them occur.
KINDS = ("bright", "gray_in_white", "ring", "white_in_fluid", "dark", "subtle")
# Radius range (mm) of each kind. Small ones fit a ventricle; faint ones must be large to be seen by a reader.
RADII = {
    "bright": (4.5, 11.0),
    "gray_in_white": (6.0, 12.0),
    "ring": (8.0, 16.0),
    "white_in_fluid": (4.5, 7.0),
    "dark": (4.5, 14.0),
    "subtle": (9.0, 16.0),
}
# Section of the datalist, letter of its patients' ids, label, and which of its subjects are DICOM series.
GROUPS = {
    "training": ("training", "T", 0, (1,)),
    "calibration": ("calibration", "C", 0, ()),
    "normal_test": ("test", "N", 0, (1, 3)),
    "abnormal_test": ("test", "A", 1, (1, 3)),
}

Array = NDArray[np.float32]


@dataclass(frozen=True)
class _Anatomy:
    """Maps of the average brain on one grid: gray and white matter fractions, T1 detail that the fractions do not
    explain, and the signed distance (mm, negative inside) to the brain's hull."""

    to_voxel: NDArray[np.float64]
    maps: dict[str, Array]


@dataclass(frozen=True)
class _Lesion:
    """One lesion: its kind, centre (voxel of the scan), radius (mm) and how far it pushes tissue aside (mm)."""

    kind: str
    center: tuple[int, int, int]
    radius: float
    push: float


@dataclass(frozen=True)
class SimulatedScan:
    """A simulated scan: ``image`` int16 and ``mask`` uint8 of shape ``SHAPE``, RAS ``affine``, voxel size in mm."""

    image: NDArray[np.int16]
    mask: NDArray[np.uint8]
    affine: NDArray[np.float64]
    spacing: tuple[float, float, float]
    lesions: tuple[_Lesion, ...]


@lru_cache(maxsize=1)
def load_anatomy() -> _Anatomy:
    """The average brain made from nilearn's copies of the MNI152 T1, gray- and white-matter maps at 2 mm.

    Raises:
        ImportError: if nilearn is not installed.
    """
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    try:
        from nilearn import datasets
    except ImportError as error:
        raise ImportError(
            'the demonstration cohort needs nilearn, which is not installed; run: pip install "monai-anomaly[demo]"'
        ) from error

    resolution = 2  # mm
    t1_image = datasets.load_mni152_template(resolution=resolution)
    gray_image = datasets.load_mni152_gm_template(resolution=resolution)
    white_image = datasets.load_mni152_wm_template(resolution=resolution)
    margin = 10  # voxels around the template's grid, so that no sample falls outside
    t1, gray, white = (
        np.pad(np.clip(image.get_fdata(), 0, 1), margin).astype(np.float32)
        for image in (t1_image, gray_image, white_image)
    )
    affine = np.array(t1_image.affine, dtype=np.float64)
    affine[:3, 3] -= affine[:3, :3] @ np.full(3, margin)

    def distance(mask: NDArray[np.bool_], smooth: float) -> Array:
        signed = distance_transform_edt(~mask) - distance_transform_edt(mask)
        return gaussian_filter(signed * resolution, smooth / resolution).astype(np.float32)

    brain = t1 > 0.1  # fluid is at 0.15 and above, air at 0
    closing = 14 / resolution  # mm: bridges sulci and the cleft between the hemispheres
    hull = distance_transform_edt(distance_transform_edt(~brain) < closing) > closing
    hull_distance = distance(hull | brain, smooth=3)
    # What the fractions leave unexplained (folia, deep nuclei); 0.27, 0.65 and 0.87 are the medians of the T1 where
    # fluid, gray and white matter are pure.
    detail = t1 - (0.27 * np.clip(1 - gray - white, 0, 1) + 0.65 * gray + 0.87 * white)
    inside = np.clip(-distance(brain, smooth=0) / resolution - 1, 0, 1)  # the rim of the stripped T1 is no detail
    maps = {
        "gray": gray,
        "white": white,
        "detail": (detail * inside).astype(np.float32),
        "hull": hull_distance,
    }
    return _Anatomy(np.linalg.inv(affine).astype(np.float64), maps)


class _Grid:
    """The scan's sampling grid, ``SUBSLICES`` per slice, in the scan's own axes (left, posterior, superior; mm)."""

    def __init__(self, spacing: tuple[float, float, float]) -> None:
        offsets = (np.arange(SUBSLICES) - (SUBSLICES - 1) / 2) / SUBSLICES
        slices = (np.arange(SHAPE[2])[:, None] + offsets).ravel()
        self.voxels = (np.arange(SHAPE[0]), np.arange(SHAPE[1]), slices)
        self.axes = tuple(v * s for v, s in zip(self.voxels, spacing))

    def field(self, rng: np.random.Generator, scale: float) -> Array:
        """A smooth Gaussian field of mean 0 and variance 1: cubic B-splines on a lattice of ``scale`` mm."""
        from scipy.interpolate import BSpline
        from scipy.sparse import diags_array

        bases = []
        for axis in self.axes:
            spans = math.ceil((axis[-1] - axis[0]) / scale) + 1
            knots = axis[0] + scale * (np.arange(spans + 7) - 3.0)
            basis = BSpline.design_matrix(axis, knots, 3)
            norm = np.sqrt(np.asarray(basis.power(2).sum(axis=1)).ravel())
            bases.append((diags_array(1 / norm) @ basis).tocsr())
        values: NDArray[np.float64] = rng.standard_normal([basis.shape[1] for basis in bases])
        # Sparse products run in one thread, so the last bit does not depend on the machine's load or cores.
        for basis in bases:
            rest = values.shape[1:]
            values = np.moveaxis((basis @ values.reshape(len(values), -1)).reshape(-1, *rest), 0, -1)
        return np.ascontiguousarray(values, dtype=np.float32)

    def offset(self, center: tuple[int, int, int], spacing: tuple[float, float, float]) -> list[Array]:
        """Offset (mm) of every sample from a voxel along each of the scan's axes, broadcastable."""
        moved = [(v - c) * s for v, c, s in zip(self.voxels, center, spacing)]
        return [m.astype(np.float32) for m in np.ix_(*moved)]

    @staticmethod
    def average(samples: Array) -> Array:
        """Mean over the samples of each slice."""
        return samples.reshape(*SHAPE, SUBSLICES).mean(axis=-1)


def _rng(seed: int, group: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, list(GROUPS).index(group), index])


def simulate(seed: int, group: str, index: int) -> SimulatedScan:
    """Simulate one subject.

    Args:
        seed: the cohort's seed.
        group: key of ``GROUPS``; subjects of ``abnormal_test`` get lesions.
        index: the subject's place in the group.
    """
    from scipy.special import expit

    rng = _rng(seed, group, index)
    anatomy = load_anatomy()
    in_plane, between = rng.uniform(1.95, 2.1), rng.uniform(5.3, 6.0)
    spacing = (in_plane, in_plane, between)
    grid = _Grid(spacing)
    affine, to_template = _geometry(rng, spacing)

    # Two scales: the brain's overall shape, then the course of single gyri. Amplitudes well below the scales keep
    # the map one-to-one.
    warp = [3.0 * grid.field(rng, 55.0) + 1.1 * grid.field(rng, 18.0) for _ in range(3)]
    lesions: tuple[_Lesion, ...] = ()
    if GROUPS[group][2]:
        lesions = _choose_lesions(rng, index, _sample(anatomy, grid, to_template, warp), spacing)
        _displace(warp, lesions, grid, spacing, to_template)
    tissue = _sample(anatomy, grid, to_template, warp)

    # Relative to white matter at 1: T1-weighted ranges of the template and of common 1.5 and 3 T protocols.
    fluid, gray, white = rng.uniform(0.22, 0.36), rng.uniform(0.66, 0.76), 1.0
    brain = _brain(tissue, fluid, gray, white)
    brain *= 1 + 0.02 * grid.field(rng, 8.0)
    inside = expit(-(tissue["hull"] - 0.5) / EDGE)
    cover = np.zeros_like(brain)
    for lesion in lesions:
        alpha = _draw(rng, lesion, brain, inside, grid, spacing, (fluid, gray, white))
        cover = np.maximum(cover, alpha)

    signal = grid.average(brain)
    bias = grid.average(np.exp(0.1 * grid.field(rng, 90.0)))
    sigma = rng.uniform(0.02, 0.035)  # of white matter: a signal-to-noise ratio of 30 to 50
    real = signal * bias + sigma * rng.standard_normal(SHAPE)
    noisy = np.hypot(real, sigma * rng.standard_normal(SHAPE))
    gain = rng.uniform(300, 900)  # scanner units are arbitrary
    image = np.clip(np.rint(noisy * gain), 0, np.iinfo(np.int16).max).astype(np.int16)
    image[grid.average(tissue["hull"]) > HULL] = 0  # brain extraction
    mask = (grid.average(cover) > 0.5).astype(np.uint8)
    return SimulatedScan(image, mask, affine, spacing, lesions)


def _geometry(
    rng: np.random.Generator, spacing: tuple[float, float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The scan's RAS affine (voxel to scanner, mm) and the affine from voxel to template space (mm).

    The slices are tilted in the scanner; they follow the head, but for a few degrees, as a technologist sets them.
    """
    from scipy.spatial.transform import Rotation

    tilt = Rotation.from_euler("xyz", rng.uniform(2, 8, 3) * rng.choice([-1, 1], 3), degrees=True).as_matrix()
    middle = (np.array(SHAPE) - 1) / 2
    lps = np.diag([-1.0, -1.0, 1.0]) * spacing

    affine = np.eye(4)
    affine[:3, :3] = tilt @ lps
    affine[:3, 3] = rng.uniform(-15, 15, 3) - affine[:3, :3] @ middle

    residual = Rotation.from_euler("xyz", rng.uniform(-3, 3, 3), degrees=True).as_matrix()
    # The MNI152 average is larger than most heads, so a subject's millimetre is a little more of the template's.
    shape = np.diag(rng.uniform(1.0, 1.1, 3)) + np.triu(rng.uniform(-0.03, 0.03, (3, 3)), 1)
    to_template = np.eye(4)
    to_template[:3, :3] = shape @ residual @ lps
    center = np.array([0.0, -18.0, 10.0]) + rng.uniform(-3, 3, 3)  # the middle of the template's brain
    to_template[:3, 3] = center - to_template[:3, :3] @ middle
    return affine, to_template


def _sample(anatomy: _Anatomy, grid: _Grid, to_template: NDArray[np.float64], warp: list[Array]) -> dict[str, Array]:
    """The anatomy's maps at the grid's samples, displaced by ``warp`` (mm in template space)."""
    from scipy.ndimage import map_coordinates

    x, y, z = np.ix_(*grid.voxels)
    matrix = anatomy.to_voxel @ to_template
    turn = anatomy.to_voxel[:3, :3]
    where = np.stack(
        [
            (m[0] * x + m[1] * y + m[2] * z + m[3]).astype(np.float32) + sum(t * w for t, w in zip(row, warp) if t)
            for m, row in zip(matrix[:3], turn)
        ]
    )
    return {name: map_coordinates(values, where, order=1, mode="nearest") for name, values in anatomy.maps.items()}


def _brain(tissue: dict[str, Array], fluid: float, gray: float, white: float) -> Array:
    """The noise-free T1-weighted brain in its fluid (white matter is 1)."""
    rest = np.clip(1 - tissue["gray"] - tissue["white"], 0, 1)
    brain = gray * tissue["gray"] + white * tissue["white"] + fluid * rest + tissue["detail"] / 0.87
    return np.maximum(brain, 0).astype(np.float32)


def _choose_lesions(
    rng: np.random.Generator, index: int, tissue: dict[str, Array], spacing: tuple[float, float, float]
) -> tuple[_Lesion, ...]:
    """One to four lesions, each in tissue that suits its kind, apart from each other and clear of the brain's edge."""
    from scipy.ndimage import gaussian_filter

    gray, white, hull = (_Grid.average(tissue[name]) for name in ("gray", "white", "hull"))
    fluid = np.clip(1 - gray - white, 0, 1)
    places = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
    imaged = np.zeros(SHAPE, dtype=bool)
    imaged[:, :, 3:-3] = True  # whole within the scan

    lesions: list[_Lesion] = []
    for number in range(rng.integers(1, 5)):
        kind = KINDS[index % len(KINDS)] if number == 0 else str(rng.choice(KINDS))
        radius = float(rng.uniform(*RADII[kind]))
        if kind == "white_in_fluid":
            free = imaged & (hull < -25)  # mm: the ventricles and central cisterns, no sulci
            wanted = fluid
        else:
            free = imaged & (hull < -(radius + 2))
            # A faint lesion among sulci would not be seen.
            suits = white if kind in ("gray_in_white", "subtle") else gray + white
            wanted = gaussian_filter(suits, [radius / 2 / s for s in spacing])
        for other in lesions:
            apart = np.linalg.norm((places - other.center) * spacing, axis=-1)
            free &= apart > radius + other.radius + 4
        if not free.any():  # a full brain: three large lesions may leave no room for a fourth
            break
        spots = np.argwhere(free & (wanted >= 0.85 * wanted[free].max()))
        x, y, z = (int(c) for c in spots[rng.integers(len(spots))])
        pushes = radius >= 7 and kind != "subtle" and rng.random() < 0.5
        push = radius * float(rng.uniform(0.25, 0.5)) if pushes else 0.0
        lesions.append(_Lesion(kind, (x, y, z), radius, push))
    return tuple(lesions)


def _displace(
    warp: list[Array],
    lesions: Iterable[_Lesion],
    grid: _Grid,
    spacing: tuple[float, float, float],
    to_template: NDArray[np.float64],
) -> None:
    """Add the mass effect of lesions to ``warp`` in place: tissue is pushed away from their centres.

    A sample at radius r takes its tissue from nearer the centre; the push fades over twice the lesion's radius,
    which keeps the order of tissues along every ray.
    """
    turn = to_template[:3, :3] / spacing  # the scan's millimetres to the template's
    for lesion in lesions:
        if not lesion.push:
            continue
        offset = grid.offset(lesion.center, spacing)
        r = np.sqrt(sum(o * o for o in offset))
        shift = lesion.push * np.exp(-np.maximum(r - lesion.radius, 0) / (2 * lesion.radius))
        shift = np.minimum(shift, r) / np.maximum(r, 1e-6)  # no farther than the centre
        for axis in range(3):
            warp[axis] -= shift * sum(t * o for t, o in zip(turn[axis], offset))


def _draw(
    rng: np.random.Generator,
    lesion: _Lesion,
    brain: Array,
    inside: Array,
    grid: _Grid,
    spacing: tuple[float, float, float],
    tissue_means: tuple[float, float, float],
) -> Array:
    """Blend a lesion of irregular outline into ``brain`` in place.

    Returns:
        Its opacity, 0 to 1, at every sample.
    """
    from scipy.special import expit

    fluid, gray, white = tissue_means
    offset = grid.offset(lesion.center, spacing)
    stretch = rng.uniform(0.85, 1.15, 3)
    r = np.sqrt(sum((o * s) ** 2 for o, s in zip(offset, stretch)))
    # The outline waves by up to a quarter of the radius, over distances of about the radius.
    edge = lesion.radius * (1 + 0.25 * np.tanh(grid.field(rng, lesion.radius)))
    depth = edge - r  # mm below the lesion's surface
    alpha = expit(depth / EDGE) * inside

    texture = 1 + 0.05 * grid.field(rng, 6.0)
    if lesion.kind == "bright":  # blood products, fat, enhancement
        value = white * rng.uniform(1.2, 1.45) * texture
    elif lesion.kind == "dark":  # edema, cyst, old infarct
        value = (fluid + rng.uniform(0.0, 0.35) * (gray - fluid)) * texture
    elif lesion.kind == "gray_in_white":  # as heterotopic gray matter
        value = gray * rng.uniform(0.95, 1.05) * texture
    elif lesion.kind == "white_in_fluid":  # as an intraventricular mass
        value = white * rng.uniform(0.9, 1.05) * texture
    elif lesion.kind == "ring":  # as an abscess or a necrotic tumor
        rim = expit((rng.uniform(2.5, 4.0) - depth) / EDGE)
        value = (fluid * 1.2 + rim * (white * rng.uniform(1.15, 1.35) - fluid * 1.2)) * texture
    else:  # subtle: the anatomy shows through, 4 to 6 times the noise away
        value = brain * (1 + rng.choice([-1, 1]) * rng.uniform(0.12, 0.18))
    brain += (alpha * (value - brain)).astype(np.float32)
    return alpha
