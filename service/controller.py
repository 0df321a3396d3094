"""Puts the reconciler together with the cluster that the settings name."""

from service.cluster import RayCluster
from service.policy import PolicyFile
from service.reconciler import Reconciler
from service.settings import Settings


def build_controller(settings: Settings) -> Reconciler:
    """Return the controller that `service.app.create_app` runs."""
    return Reconciler(RayCluster(settings.home.absolute(), settings.ray_address), settings.storage_path, PolicyFile(settings.policy_path))
