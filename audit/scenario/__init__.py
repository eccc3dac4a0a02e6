"""scenarios/*.yaml → Scenario: what is asked of the subject, in which variants, and what its answers count as."""

from audit.scenario.loading import ScenarioEntry, list_scenarios, load_scenario, read_scenario
from audit.scenario.schema import ANY, TEXT, Channel, Contrast, Message, NoOutcome, Outcomes, Passage, Rule, Scenario

__all__ = [
    "ANY",
    "TEXT",
    "Channel",
    "Contrast",
    "Message",
    "NoOutcome",
    "Outcomes",
    "Passage",
    "Rule",
    "Scenario",
    "ScenarioEntry",
    "list_scenarios",
    "load_scenario",
    "read_scenario",
]
