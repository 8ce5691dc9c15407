"""What every test may rely on."""

from hypothesis import HealthCheck, settings
from support.databases import connection, database_kind, target

__all__ = ("connection", "database_kind", "target")

# Examples are few enough for the whole suite to stay quick, and no deadline: the machine may be busy.
settings.register_profile(
    "house", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.register_profile("deep", parent=settings.get_profile("house"), max_examples=2000)
settings.load_profile("house")
