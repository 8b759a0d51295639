"""What embedding a data set will take, from the model's configuration and the rows' number and length: no weights read.

`work` counts operations and bytes, `devices` knows how fast machines are, `estimate` divides the one by the other, and
`measure` replaces the assumed share of a machine's peak by a measured one.
"""

from __future__ import annotations

from hf_safefilter.plan.calibration import Measured, calibrate
from hf_safefilter.plan.devices import DEVICES, Device, device_named
from hf_safefilter.plan.estimate import Estimate, Plan, make_plan
from hf_safefilter.plan.lengths import Lengths, sample_lengths
from hf_safefilter.plan.work import Work, count_work

__all__ = [
    "DEVICES",
    "Device",
    "Estimate",
    "Lengths",
    "Measured",
    "Plan",
    "Work",
    "calibrate",
    "count_work",
    "device_named",
    "make_plan",
    "sample_lengths",
]
