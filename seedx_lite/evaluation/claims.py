"""Verdicts on the paper's claims, by the rules of `claims.yaml`, which were fixed before the experiments."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .statistics import interval

RULES = Path(__file__).with_name("claims.yaml")
SEEDS = 5  # that a verdict needs, where a rule does not say
Cells = Mapping[str, Mapping[int, Mapping[str, Mapping[str, Mapping[str, float]]]]]  # variant, seed, set, metric, mean


@dataclass(frozen=True)
class Verdict:
    """One part of a claim, with the mean of the paired differences and its 95 % t-interval over the seeds, in the units
    of the metric, as is the margin."""

    claim: str
    part: str
    rule: Mapping[str, Any]
    differences: dict[int, float]  # by seed
    effect: dict[str, float] | None  # mean, low, high; None, as the margin, for fewer than two seeds
    margin: float | None
    verdict: str

    def __str__(self) -> str:
        first, second = self.rule["contrast"]
        what = f"{self.claim}, {self.part}: {self.rule['metric']} of {first} - {second}, {self.rule['set']} scenes"
        if self.effect is None:
            return f"{what}: {self.verdict}, pairs of cells so far: {len(self.differences)}"
        told = f"{self.effect['mean']:+.4f} [{self.effect['low']:+.4f}, {self.effect['high']:+.4f}]"
        return f"{what}: {told}, margin {self.margin:.4f}, {len(self.differences)} seeds: {self.verdict}"


def read_rules() -> dict[str, Any]:
    """The claims and their parts, by name."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(RULES))


def unlike_pairs(record: Mapping[str, Any], claims: Iterable[str]) -> list[str]:
    """Pairs of cells that claims compare, of which one was trained in fp32 and one in bf16, as its machine allowed."""
    pairs = {tuple(part["contrast"]) for claim in claims for part in read_rules()[claim]["parts"].values()}
    return [
        f"{first} and {second}, seed {seed}"
        for first, second in sorted(pairs)
        for seed, cell in record["cells"].get(first, {}).items()
        if record["cells"].get(second, {}).get(seed, cell).get("dtype") != cell.get("dtype")
    ]


def judge(effect: Mapping[str, float], margin: float, want: str) -> str:
    """The verdict on an effect {"mean", "low", "high"}; want: more, less or no_less. Raises ValueError for others."""
    if want not in ("more", "less", "no_less"):
        raise ValueError(f"want: {want!r}: expected more, less or no_less")
    low, high = effect["low"], effect["high"]
    if want == "less":
        low, high = -high, -low
    if high < -margin:
        return "reversed"
    if low > (-margin if want == "no_less" else margin):
        return "reproduced"
    return "no difference" if -margin < low and high < margin else "inconclusive"


def together(verdicts: Sequence[str]) -> str:
    """The verdict on a claim from those on its parts."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    if "unfinished" in verdicts:
        return "unfinished"
    if "reproduced" in verdicts:
        return "in part"
    return "not reproduced" if "reversed" in verdicts else "inconclusive"


def verdicts(
    cells: Cells, ceilings: Mapping[str, Mapping[str, Mapping[str, float]]], claims: Collection[str]
) -> list[Verdict]:
    """A verdict on each part of each of the `claims`; `unfinished` where fewer seeds than the rule asks for have both
    cells, `not comparable` where they have them without a number that could be compared.

    ceilings: by set and metric, the mean over VAE round trips of the same pictures.
    """
    told = []
    for claim in claims:
        for part, rule in read_rules()[claim]["parts"].items():
            where, metric, asked = rule["set"], rule["metric"], rule.get("seeds", SEEDS)
            sides = [cells.get(name, {}) for name in rule["contrast"]]
            first, second = (
                {seed: sets[where][metric]["mean"] for seed, sets in side.items() if metric in sets.get(where, {})}
                for side in sides
            )
            differences = {seed: first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())}
            without = "not comparable" if len(sides[0].keys() & sides[1].keys()) >= asked else "unfinished"
            if len(differences) < 2:
                told.append(Verdict(claim, part, rule, differences, None, None, without))
                continue
            margin = rule["margin"] * (ceilings[where][metric]["mean"] if rule["of_ceiling"] else 1)
            effect = interval(list(differences.values()))
            verdict = judge(effect, margin, rule["want"]) if len(differences) >= asked else without
            told.append(Verdict(claim, part, rule, differences, effect, margin, verdict))
    return told
