"""What embedding a data set will take, from the configuration of the model and the number and length of the rows alone.

`work` counts operations and bytes, `devices` lists the speed of machines, `estimate` divides the one by the other, and
`calibration` replaces the assumed share of a machine's peak with a measured one. No weights are read.
"""

from __future__ import annotations

from hf_safefilter.plan.calibration import Calibration, calibrate
from hf_safefilter.plan.devices import DEVICES, Device, device_named, number_and_name
from hf_safefilter.plan.estimate import Estimate, Plan, make_plan
from hf_safefilter.plan.lengths import Lengths, sample_lengths
from hf_safefilter.plan.work import Work, count_work

__all__ = [
    "DEVICES",
    "Calibration",
    "Device",
    "Estimate",
    "Lengths",
    "Plan",
    "Work",
    "calibrate",
    "count_work",
    "device_named",
    "make_plan",
    "number_and_name",
    "sample_lengths",
]
