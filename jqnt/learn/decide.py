"""From a choice of options to what holds: the plan and the parameters without choices."""

from collections.abc import Mapping

from jqnt.errors import ConfigError, nearest
from jqnt.plan import Options, Plan, Theta, branch_specs

__all__ = ["decide_plan", "decide_theta"]


def decide_plan(plan: Plan, assignment: Mapping[str, int]) -> Plan:
    """The plan in which every tensor of a choice has the spec of the option taken.

    `assignment` maps each choice to an option. Raises ConfigError for a choice that is missing
    or unknown, and for an option that it does not have.
    """
    _check(plan, assignment)
    specs = dict(plan.specs)
    for name, choice in plan.choices.items():
        specs.update(zip(choice.tensors, choice.options[assignment[name]], strict=True))
    return plan.replace(specs=specs, choices={})


def decide_theta(theta: Theta, plan: Plan, assignment: Mapping[str, int]) -> Theta:
    """The parameters for `decide_plan(plan, assignment)`: each tensor's branch that is taken."""
    _check(plan, assignment)
    decided = {name: group for name, group in theta.items() if not isinstance(group, Options)}
    for name, choice in plan.choices.items():
        option = choice.options[assignment[name]]
        for tensor, spec in zip(choice.tensors, option, strict=True):
            branch = branch_specs(choice, tensor).index(spec)
            decided[tensor] = theta[name].branches[tensor][branch]
    return decided


def _check(plan: Plan, assignment: Mapping[str, int]) -> None:
    for name in assignment:
        if name not in plan.choices:
            raise ConfigError(f"the plan has no choice {name!r}{nearest(name, plan.choices)}")
    for name, choice in plan.choices.items():
        if name not in assignment:
            raise ConfigError(f"no option is given for choice {name!r}")
        if not 0 <= assignment[name] < len(choice.options):
            raise ConfigError(
                f"choice {name!r} has options 0 to {len(choice.options) - 1}, not "
                f"{assignment[name]}"
            )
