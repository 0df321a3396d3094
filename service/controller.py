"""Puts the reconciler together with the cluster that the settings name."""

from service.cluster import RayCluster
from service.policy import PolicyFile
from service.reconciler import Reconciler
from service.settings import Settings
from worker.storage.opening import open_storage


def build_controller(settings: Settings) -> Reconciler:
    """Return the controller that `service.app.create_app` runs."""
    storage, policy = open_storage(settings.storage_url), PolicyFile(settings.policy_path)
    return Reconciler(RayCluster(settings.home.absolute(), settings.ray_address, settings.allow_open_ray), storage, policy)
