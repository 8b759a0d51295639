"""Token risk: which tokens of a row would a model that answers everything predict better than a useful, safe one?

`fit_token_risk` trains two small adapters on one base model; `TokenRiskScore` scores rows by their riskiest window, and
`MaskRiskyTokens` takes single tokens out of the loss, as published: those above `risk_threshold`.
"""

from hf_safefilter.scores.token_risk.fit import fit_token_risk
from hf_safefilter.scores.token_risk.mask_risky import MaskRiskyTokens, risk_threshold
from hf_safefilter.scores.token_risk.risk_adapters import RiskAdapters
from hf_safefilter.scores.token_risk.score import TokenRiskScore

__all__ = ["MaskRiskyTokens", "RiskAdapters", "TokenRiskScore", "fit_token_risk", "risk_threshold"]
