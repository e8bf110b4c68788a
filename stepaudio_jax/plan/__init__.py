"""Before a pod is rented: does a run fit, what does it cost, what limits it. By the TPU compiler, without a TPU."""

from stepaudio_jax.plan.offers import Offer, compare, read_prices
from stepaudio_jax.plan.plan import Plan, PlanError, plan_config, plan_program
from stepaudio_jax.plan.search import Found, fit

__all__ = ["Found", "Offer", "Plan", "PlanError", "compare", "fit", "plan_config", "plan_program", "read_prices"]
