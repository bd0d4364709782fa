"""What an adapter makes of a model's features and logits, as tensors that a composition carries for each task.

The names tell the form: ``keys`` a cache of examples (Tip-Adapter), ``linear`` a linear layer on the unit features
(LP++, linear probe). No tensors leave the logits as they are.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from taskvec.vectors import Tensors

SCALE = 100.0  # of CLIP's logits: LP++ mixes in cosines (spec 6.5)


def read_out(readout: Tensors, features: Tensor, logits: Tensor) -> Tensor:
    """Return the logits [N, C] that a readout makes of features [N, d] and the head's logits [N, C].

    ``keys`` [n, d], ``classes`` [n, C] one-hot, ``sharpness`` beta and ``strength`` alpha (0-d): logits +
    alpha exp(-beta (1 - z F^T)) V (Zhang et al., Tip-Adapter, ECCV 2022; spec 6.5). ``linear`` [C, d], ``bias`` [C] and
    ``mix`` [C]: z W^T + b + mix * logits / 100 (Huang et al., LP++, CVPR 2024; spec 6.5). z is features / ||features||.
    """
    if "keys" in readout:
        unit = F.normalize(features, dim=1).to(readout["keys"])
        closeness = unit @ readout["keys"].T
        weights = (-readout["sharpness"] * (1 - closeness)).exp()
        return logits + readout["strength"] * (weights @ readout["classes"])
    if "linear" in readout:
        unit = F.normalize(features, dim=1).to(readout["linear"])
        own = F.linear(unit, readout["linear"], readout["bias"])
        return own + readout["mix"] * logits / SCALE
    return logits
