"""Building blocks of the networks."""

from __future__ import annotations

from .block_memory import *
from .contrast import *
from .dcgan import *
from .encoder_decoder import *
from .erasing import *
from .features import *
from .lenet import *
from .memory import *
from .resnet import *
from .resnet34 import *
from .skip_autoencoder import *
from .smoothing import *
from .unet import *
