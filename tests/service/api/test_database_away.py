"""The API on PostgreSQL, and what a client sees when the database is killed and comes back."""

from tests.service.api.world import running
from tests.service.store.ranks import SPEC


def test_requests_get_503_while_the_database_is_away_and_nothing_is_lost(mortal_postgres, tmp_path):
    """Told when to ask again; the same submission, repeated with its key, is one job."""
    with running(tmp_path, database_url=mortal_postgres.new_database()) as world:
        before = world.submit()["id"]
        headers = {"Idempotency-Key": "once"}
        mortal_postgres.kill()
        try:
            for answer in (world.client.post("/v1/jobs", json=SPEC, headers=headers), world.client.get(f"/v1/jobs/{before}")):
                assert (answer.status_code, answer.json()["code"], answer.headers["Retry-After"]) == (503, "database_unavailable", "2")
            assert world.client.get("/readyz").status_code == 503
            assert world.client.get("/healthz").status_code == 200
        finally:
            mortal_postgres.start()
        first, twin = (world.client.post("/v1/jobs", json=SPEC, headers=headers) for _ in range(2))
        assert first.json()["id"] == twin.json()["id"]
        assert {job["id"] for job in world.client.get("/v1/jobs").json()["data"]} == {before, first.json()["id"]}
        assert world.client.get("/readyz").status_code == 200
