"""Preference losses as pure functions of a pass's summed log-probabilities; the table is ``recipe/losses.py``.

Reads nothing, writes nothing. A loss's constants are its keywords. Symbols: c chosen, r rejected; p the policy's summed
log-probability of an answer, f the reference's, n the answer's scored tokens (the end of turn
among them); b beta, e label smoothing, s the logistic function. l_c = p_c - f_c and
l_r = p_r - f_r are the log-ratios. Every loss is one value a pair, [pairs].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from openbezoar.forest.scorer import TreeScores


@dataclass(frozen=True)
class PairScores:
    """Log-probabilities of the answers of some pairs, in nats; all float [pairs].

    The reference is None for the losses that have none.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    reference_chosen: Tensor | None = None
    reference_rejected: Tensor | None = None

    @classmethod
    def of(cls, policy: Tensor, tokens: Tensor, reference: Tensor | None) -> PairScores:
        """From [pairs, 2] matrices whose columns are chosen and rejected."""
        references = (None, None) if reference is None else (reference[:, 0], reference[:, 1])
        return cls(policy[:, 0], policy[:, 1], tokens[:, 0], tokens[:, 1], *references)

    @classmethod
    def joined(cls, parts: Sequence[PairScores]) -> PairScores:
        """The pairs of several passes, in order."""

        def every(name: str) -> Tensor | None:
            return None if getattr(parts[0], name) is None else torch.cat([getattr(part, name) for part in parts])

        return cls(**{field.name: every(field.name) for field in fields(cls)})  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> PairScores:
        """The same numbers on a device."""
        return PairScores(*(None if x is None else x.to(device) for x in vars(self).values()))  # type: ignore[arg-type]

    def ratios(self) -> tuple[Tensor, Tensor]:
        """(l_c, l_r): the policy's log-probabilities less the reference's."""
        assert self.reference_chosen is not None and self.reference_rejected is not None, "this loss needs a reference"
        return self.chosen - self.reference_chosen, self.rejected - self.reference_rejected

    def means(self) -> tuple[Tensor, Tensor]:
        """(p_c / n_c, p_r / n_r): the policy's mean log-probability of a token."""
        return self.chosen / self.chosen_tokens, self.rejected / self.rejected_tokens

    def detached(self) -> PairScores:
        """The same numbers without gradients."""
        return PairScores(
            self.chosen.detach(),
            self.rejected.detach(),
            self.chosen_tokens,
            self.rejected_tokens,
            self.reference_chosen,
            self.reference_rejected,
        )


@dataclass(frozen=True)
class UnpairedScores:
    """Log-probabilities of answers that were liked or not, in nats: policy and reference, float
    [answers]; liked, bool [answers].
    """

    policy: Tensor
    reference: Tensor
    liked: Tensor

    def ratios(self) -> Tensor:
        """l: the policy's log-probabilities less the reference's."""
        return self.policy - self.reference


def _smoothed(margin: Tensor, smoothing: float) -> Tensor:
    """-(1 - e) log s(x) - e log s(-x)."""
    return -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)


def sigmoid(scores: PairScores, *, beta: float, label_smoothing: float) -> Tensor:
    """DPO and, with label smoothing, conservative DPO: -(1 - e) log s(x) - e log s(-x), x = b (l_c - l_r).

    e = 0 is equation 7 of arXiv 2305.18290. e > 0 takes a share e of the labels as flipped
    (Mitchell, "A note on DPO with noisy preferences & relationship to IPO", 2023; the
    reference code of DPO has it as label_smoothing). ln 2 where policy = reference.
    """
    chosen, rejected = scores.ratios()
    return _smoothed(beta * (chosen - rejected), label_smoothing)


def sigmoid_norm(scores: PairScores, *, beta: float, label_smoothing: float) -> Tensor:
    """Length-normalised DPO: as sigmoid with x = b (l_c / n_c - l_r / n_r).

    The DPO objective of Tülu 3, arXiv 2411.15124 ('dpo_norm' in its code, 'sigmoid_norm' in TRL).
    ln 2 where policy = reference.
    """
    chosen, rejected = scores.ratios()
    return _smoothed(beta * (chosen / scores.chosen_tokens - rejected / scores.rejected_tokens), label_smoothing)


def ipo(scores: PairScores, *, beta: float) -> Tensor:
    """IPO: (l_c / n_c - l_r / n_r - 1 / (2 b))^2, equation 17 of arXiv 2310.12036 with b its tau.

    The equation has log-ratios of whole answers. Means per token are what TRL has computed
    since its pull request 1265, on the authors' advice, so that beta does not depend on the
    length. 1 / (4 b^2) where policy = reference.
    """
    chosen, rejected = scores.ratios()
    return (chosen / scores.chosen_tokens - rejected / scores.rejected_tokens - 1 / (2 * beta)).square()


def hinge(scores: PairScores, *, beta: float) -> Tensor:
    """Hinge on the log-ratios: max(0, 1 - b (l_c - l_r)); 1 / b is the margin.

    SLiC's calibration loss (arXiv 2305.10425, without its cross-entropy term) normalised by the
    reference, which is L_hinge-norm of RSO, arXiv 2309.06657, and TRL's 'hinge'. 1 where policy = reference.
    """
    chosen, rejected = scores.ratios()
    return relu(1 - beta * (chosen - rejected))


def dpop(scores: PairScores, *, beta: float, dpop_lambda: float) -> Tensor:
    """DPO-positive: -log s(b (l_c - l_r - lambda max(0, -l_c))), equation 3 of arXiv 2402.13228.

    The last term counts where the chosen answer has become less likely than under the
    reference. ln 2 where policy = reference.
    """
    chosen, rejected = scores.ratios()
    return -logsigmoid(beta * (chosen - rejected - dpop_lambda * relu(-chosen)))


def rpo(scores: PairScores, *, beta: float, rpo_alpha: float) -> Tensor:
    """RPO: -log s(b (l_c - l_r)) - alpha p_c / n_c, equation 1 of arXiv 2404.19733 (iterative reasoning preferences).

    DPO with the negative log-likelihood of the chosen answer a token, which the difference alone lets fall
    together with the rejected one's. The equation divides by the tokens of prompt and answer; here, as in TRL's
    'rpo_alpha', by the answer's, so that the weight does not depend on the prompt. ln 2 - alpha p_c / n_c
    where policy = reference.
    """
    chosen, rejected = scores.ratios()
    return -logsigmoid(beta * (chosen - rejected)) - rpo_alpha * scores.means()[0]


def kto_pair(scores: PairScores, *, beta: float) -> Tensor:
    """KTO on pairs: half of (1 - s(b (l_c - z_r))) + (1 - s(b (z_c - l_r))).

    Equation 7 of the report on HALOs, which became arXiv 2402.01306, as TRL's 'kto_pair' (up
    to 0.8) had it. The KL divergence is estimated over the given pairs, for the chosen
    answers by the rejected ones and the other way round: z_r = max(0, mean l_r),
    z_c = max(0, mean l_c). It carries no gradient, as the paper has it (TRL's did). The
    given pairs must therefore be the whole batch. 1/2 where policy = reference.
    """
    chosen, rejected = scores.ratios()
    chosen_kl, rejected_kl = chosen.detach().mean().clamp(min=0), rejected.detach().mean().clamp(min=0)
    return 0.5 * (torch.sigmoid(-beta * (chosen - rejected_kl)) + torch.sigmoid(-beta * (chosen_kl - rejected)))


def simpo(scores: PairScores, *, beta: float, simpo_gamma: float, label_smoothing: float) -> Tensor:
    """SimPO: as sigmoid with x = b (p_c / n_c - p_r / n_r) - gamma, equation 6 of arXiv 2405.14734; no reference."""
    chosen, rejected = scores.means()
    return _smoothed(beta * (chosen - rejected) - simpo_gamma, label_smoothing)


def orpo(scores: PairScores, *, orpo_lambda: float) -> Tensor:
    """ORPO: -m_c - lambda log s(log odds(m_c) - log odds(m_r)), equations 4, 6 and 7 of arXiv 2403.07691; no reference.

    m = p / n is the mean log-probability of a token, log odds(m) = m - log(1 - exp m); -m_c is
    the negative log-likelihood of the chosen answer.
    """
    chosen, rejected = scores.means()
    return -chosen - orpo_lambda * logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def _log_odds(mean: Tensor) -> Tensor:
    """m - log(1 - exp m). A certain answer (m = 0) has infinite odds, so m is held below -1e-6."""
    mean = mean.clamp(max=-1e-6)
    return mean - torch.log(-torch.expm1(mean))


def kto(
    scores: UnpairedScores, point: float, *, beta: float, desirable_weight: float, undesirable_weight: float
) -> Tensor:
    """KTO of answers that were liked, lambda_D (1 - s(b (l - z0))), or not, lambda_U (1 - s(b (z0 - l))): [answers].

    Section 4 of arXiv 2402.01306 (equation 7 by TRL's count), without the constant by which its
    loss differs from the value of an answer. point: z0, as ``reference_point`` estimates it.
    Half a weight where policy = reference.
    """
    gain = beta * (scores.ratios() - point)
    return torch.where(scores.liked, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain))


def bradley_terry(rewards: Tensor, *, margin: float, center: float) -> Tensor:
    """A reward model's loss of pairs: -log s(r_c - r_r - m) + k (r_c + r_r)^2, rewards [pairs, 2] → [pairs].

    m = k = 0 is equation 1 of InstructGPT, arXiv 2203.02155, of one pair; m > 0 the margin of Llama 2,
    arXiv 2307.09288, equation 2, the same for all pairs; k > 0 holds rewards near zero (arXiv
    2312.09244), which the difference alone does not. As in TRL's RewardTrainer.
    """
    chosen, rejected = rewards[:, 0], rewards[:, 1]
    return -logsigmoid(chosen - rejected - margin) + center * (chosen + rejected).square()


def reference_point(policy: Tensor, reference: Tensor) -> float:
    """KTO's z0 = max(0, mean(p' - f')), of answers set after other prompts of their batch, p' and f' [answers].

    An estimate of KL(policy || reference) that carries no gradient (arXiv 2402.01306, section 4).
    0 of no answers.
    """
    return max(0.0, float((policy - reference).detach().double().mean())) if len(policy) else 0.0


def _rewards(scores: PairScores, scale: float) -> tuple[Tensor, Tensor]:
    chosen, rejected = scores.means() if scores.reference_chosen is None else scores.ratios()
    return scale * chosen, scale * rejected


def margins(scores: PairScores, scale: float) -> Tensor:
    """Of each pair, the chosen answer's reward less the rejected one's, as in ``reward_metrics``: [pairs]."""
    chosen, rejected = _rewards(scores.detached(), scale)
    return chosen - rejected


def reward_metrics(scores: PairScores, scale: float) -> dict[str, Tensor]:
    """TRL's standard metrics as sums over the pairs, on their device.

    Rewards are ``scale`` (a loss's beta; TRL names ORPO's lambda one too) times the log-ratio of the
    whole answer; without a reference, times the mean log-probability of a token. ``logps`` are of
    whole answers, for every loss.
    """
    scores = scores.detached()
    chosen, rejected = _rewards(scores, scale)
    margin = chosen - rejected
    return {
        "rewards/chosen": chosen.sum(),
        "rewards/rejected": rejected.sum(),
        "rewards/margins": margin.sum(),
        "rewards/accuracies": (margin > 0).sum(dtype=margin.dtype),
        "logps/chosen": scores.chosen.sum(),
        "logps/rejected": scores.rejected.sum(),
    }


def answer_sums(scores: list[list[Tensor]]) -> Tensor:
    """Per-token scores of trees of two paths → summed log-probabilities [pairs, 2]."""
    return torch.stack([torch.stack([path.sum() for path in tree]) for tree in scores])


def answer_tokens(scores: TreeScores) -> Tensor:
    """Scored tokens of each answer of pairs, the end of turn among them: float32 [pairs, 2]."""
    return scores.asked.view(len(scores), 2).float()
