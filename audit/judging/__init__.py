"""Rollout → Verdict → result.

Torch-free, so that a finished audit can be judged and counted again without a model: ``channels`` (text → spans),
``rules`` (spans → outcome), ``tally`` (verdicts → rates, findings, gate). With a model: ``coherence`` (is it still
language), ``verdicts`` (all of it together, the step's entrance).
"""
