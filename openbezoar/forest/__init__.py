"""Log-probabilities of tokens along the paths of prefix trees, and rewards of whole paths: the one
engine that SFT, DPO, reward models, benchmarks and judges call.

A ``TokenPath`` is a sequence of token ids and which of them are asked for. A ``Tree`` is a tuple
of paths that may share a prefix. ``Scorer.logprobs`` gives, for each path, the log-probability
of each asked-for token given all tokens before it; ``RewardScorer.scores`` one number for each path.
"""

from openbezoar.forest.layout import TokenPath, Tree
from openbezoar.forest.rewards import RewardScorer
from openbezoar.forest.scorer import Scorer

__all__ = ["RewardScorer", "Scorer", "TokenPath", "Tree"]
