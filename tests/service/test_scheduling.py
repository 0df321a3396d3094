"""Tests of service/scheduling.py and what it is made of: room, reservation, quotas, preemption."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.quotas import Policy
from service.room import Bundle, Ledger, Node, Room
from service.scheduling import GRACE, Growth, Held, Need, Start, plan

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
CPU = Bundle(1, 0)
GPU = Bundle(1, 1)
NOBODY = Policy()


def need(name, workers, bundle=CPU, *, hours=1.0, least=None, priority=0, **labels):
    """A queued job."""
    return Need(name, least or workers, workers, bundle, hours * HOUR, priority, labels)


def held(name, workers, bundle=CPU, *, hours=1.0, priority=0, is_pausable=True, is_leaving=False, growth=None, **labels):
    """A live job that has just begun."""
    return Held(name, workers, bundle, priority, labels, NOW, hours * HOUR, is_pausable, is_leaving, growth=growth)


def room(*nodes, **placed):
    """Nodes as (total CPUs, total GPUs, free CPUs, free GPUs), named n0, n1, ...; and workers by node for each job."""
    return Room(tuple(Node(f"n{index}", *node) for index, node in enumerate(nodes)), placed)


def starts(decision):
    """Return what starts, as {name: workers}."""
    return {start.job_id: start.workers for start in decision.start}


def test_whole_gangs_start_in_order_while_they_fit():
    """A gang starts whole or waits."""
    decision = plan([need("a", 2), need("b", 2), need("c", 1)], room((8, 2, 4, 1)), [], NOBODY, NOW)

    assert decision.start == (Start("a", 2), Start("b", 2))
    assert (decision.waiting["c"].reason, decision.waiting["c"].message) == ("no_room", "needs 1 CPU, 0 free")


def test_a_worker_stands_on_one_node_and_a_gang_on_several():
    """Four free CPUs on four nodes take four small workers, but not one that needs two."""
    spread = room(*[(4, 0, 1, 0)] * 4)

    assert starts(plan([need("small", 4)], spread, [], NOBODY, NOW)) == {"small": 4}
    decision = plan([need("wide", 1, Bundle(2, 0))], spread, [], NOBODY, NOW)
    assert decision.waiting["wide"].message == "needs 1 worker of 2 CPUs each, 0 fit into what is free on the nodes"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (need("huge", 9), "needs 9 CPUs, 8 in the whole cluster; add nodes or use fewer workers"),
        (need("huge", 3, GPU), "needs 3 GPUs, 2 in the whole cluster; add nodes or use fewer workers"),
        (need("huge", 1, Bundle(6, 0)), "each worker needs 6 CPUs, which no single node has; add larger nodes or use smaller workers"),
    ],
)
def test_a_job_that_never_fits_says_so_and_keeps_nobody_waiting(asked, message):
    """A job for another cluster; the next one starts."""
    decision = plan([asked, need("small", 1)], room((4, 1, 4, 1), (4, 1, 4, 1)), [], NOBODY, NOW)

    assert starts(decision) == {"small": 1}
    assert (decision.waiting["huge"].reason, decision.waiting["huge"].message) == ("too_large", message)


def test_gpus_are_named_where_they_are_short():
    """The message is about what is missing."""
    decision = plan([need("a", 8, GPU)], room((64, 8, 64, 5), n0={"old": 3}), [], NOBODY, NOW)

    assert decision.waiting["a"].message == "needs 8 GPUs, 5 free"


class TestTheFirstInLine:
    """What is kept for the first job that waits for room."""

    running = room((8, 0, 4, 0), long={"n0": 4})
    longs = (held("long", 4, hours=10),)

    def test_a_job_that_could_make_it_wait_longer_waits(self):
        """A small job does not overtake a large one only because it fits."""
        decision = plan([need("large", 8), need("small", 1, hours=24)], self.running, self.longs, NOBODY, NOW)

        assert starts(decision) == {}
        assert decision.reserved.job_id == "large"
        assert decision.reserved.by == NOW + 10 * HOUR + GRACE
        assert decision.waiting["small"].reason == "behind"
        assert "fits, but could make large wait longer" in decision.waiting["small"].message

    def test_a_job_that_is_over_before_it_can_start_fills_the_gap(self):
        """The room would be idle until then."""
        decision = plan([need("large", 8), need("small", 1, hours=9)], self.running, self.longs, NOBODY, NOW)

        assert starts(decision) == {"small": 1}

    def test_a_job_that_takes_nothing_it_needs_fills_in_for_as_long_as_it_likes(self):
        """Six of eight CPUs are enough for the large one; two are left."""
        queue = [need("large", 6), need("one", 1, hours=99), need("two", 1, hours=99), need("three", 1, hours=99)]

        assert starts(plan(queue, self.running, self.longs, NOBODY, NOW)) == {"one": 1, "two": 1}

    def test_a_job_for_cpus_runs_beside_one_that_waits_for_gpus(self):
        """CPUs that the GPUs can spare are no obstacle."""
        nodes = room((64, 8, 56, 0), busy={"n0": 8})
        decision = plan([need("large", 8, Bundle(4, 1)), need("cpus", 32, hours=99)], nodes, [held("busy", 8, GPU)], NOBODY, NOW)

        assert starts(decision) == {"cpus": 32}

    def test_room_that_others_hold_is_waited_for_without_letting_anyone_by(self):
        """Nobody knows when another program on the same Ray ends."""
        decision = plan([need("large", 8), need("small", 1, hours=0.1)], room((8, 0, 4, 0)), [], NOBODY, NOW)

        assert decision.reserved.by is None
        assert starts(decision) == {}

    def test_an_overdue_job_lets_nobody_by(self):
        """What should have ended may end at any moment."""
        late = Held("long", 4, CPU, 0, {}, NOW - 10 * HOUR, HOUR, is_pausable=True, is_leaving=False)
        decision = plan([need("large", 8), need("small", 1, hours=0.1)], self.running, [late], NOBODY, NOW)

        assert decision.reserved.by == NOW
        assert starts(decision) == {}

    def test_a_gang_not_placed_yet_is_counted(self):
        """Between the decision and Ray's placement the room looks free."""
        decision = plan([need("a", 8)], room((8, 0, 8, 0)), [held("forming", 4)], NOBODY, NOW)

        assert decision.waiting["a"].message == "needs 8 CPUs, 4 free"

    def test_a_gang_of_another_controller_is_not_counted_twice(self):
        """Where it stands is not known here, but Ray shows that its room is taken."""
        decision = plan([need("a", 4)], room((8, 0, 4, 0)), [held("elsewhere", 4)], NOBODY, NOW)

        assert starts(decision) == {"a": 4}


class TestAnyNumberOfWorkers:
    """Gangs of at least so many workers and at most so many."""

    @pytest.mark.parametrize(("free", "workers"), [(8, {"a": 6}), (4, {"a": 4}), (2, {"a": 2}), (1, {})])
    def test_it_starts_with_what_is_there_but_not_with_less_than_it_needs(self, free, workers):
        """Two to six."""
        assert starts(plan([need("a", 6, least=2)], room((8, 0, free, 0)), [], NOBODY, NOW)) == workers

    def test_behind_the_first_in_line_it_takes_what_that_one_leaves(self):
        """Six of eight are reserved, so two are harmless."""
        decision = plan([need("large", 6), need("a", 4, least=1, hours=99)], TestTheFirstInLine.running, [held("long", 4)], NOBODY, NOW)

        assert starts(decision) == {"a": 2}


class TestQuotas:
    """Limits by label."""

    nodes = room((100, 100, 100, 100))

    def decide(self, queue, running=(), **limits):
        """Plan with one quota for every team."""
        policy = Policy.model_validate({"quotas": [{"label": "team", **limits}]})
        return plan(queue, self.nodes, running, policy, NOW)

    @pytest.mark.parametrize(
        ("limits", "message"),
        [
            ({"running_jobs": 1}, "quota team=a: 1 of 1 running_jobs in use, needs 1"),
            ({"workers": 5}, "quota team=a: 2 of 5 workers in use, needs 4"),
            ({"gpus": 5}, "quota team=a: 2 of 5 gpus in use, needs 4"),
        ],
    )
    def test_a_team_at_its_limit_waits_and_the_others_do_not(self, limits, message):
        """Each value of the label has the limits for itself; without the label there are none."""
        queue = [need("mine", 4, GPU, team="a"), need("theirs", 4, GPU, team="b"), need("nobodys", 50, GPU)]
        decision = self.decide(queue, [held("old", 2, GPU, team="a")], **limits)

        assert starts(decision) == {"theirs": 4, "nobodys": 50}
        assert (decision.waiting["mine"].reason, decision.waiting["mine"].message) == ("quota", message)

    def test_a_small_job_does_not_take_what_a_large_one_of_its_team_waits_for(self):
        """In its team, too, nobody starves."""
        queue = [need("large", 8, team="a"), need("small", 1, team="a")]
        decision = self.decide(queue, [held("old", 2, team="a")], workers=8)

        assert starts(decision) == {}
        assert decision.waiting["small"].message == "quota team=a: a job before it waits for the same quota"

    def test_a_job_beyond_its_quota_for_good_keeps_nobody_waiting(self):
        """It says so."""
        decision = self.decide([need("huge", 9, team="a"), need("small", 1, team="a")], workers=8)

        assert starts(decision) == {"small": 1}
        assert decision.waiting["huge"].reason == "over_quota"
        assert "0 of 8 workers in use, needs 9; use fewer workers" in decision.waiting["huge"].message

    def test_a_team_whose_storage_is_full_waits(self):
        """Until it has deleted something; a job that runs is let go on."""
        policy = Policy.model_validate({"quotas": [{"label": "team", "storage_bytes": 100}]})
        queue = [need("mine", 1, team="a"), need("theirs", 1, team="b")]
        decision = plan(queue, self.nodes, [], policy, NOW, {policy.quotas[0]: {"a": 100, "b": 99}})

        assert starts(decision) == {"theirs": 1}
        assert "quota team=a: 100 of 100 storage_bytes in use; delete" in decision.waiting["mine"].message
        assert decision.waiting["mine"].reason == "quota"

    def test_a_quota_by_token_or_project_asks_no_label(self):
        """What a user cannot write is counted, too."""
        policy = Policy.model_validate({"quotas": [{"by": "token", "running_jobs": 1}, {"by": "project", "value": "p", "workers": 3}]})
        queue = [
            replace(need("first", 2), submitter="ann", project="p"),
            replace(need("hers", 1), submitter="ann"),
            replace(need("his", 2), submitter="bob", project="p"),
            replace(need("other", 2), submitter="cyd", project="q"),
        ]
        decision = plan(queue, self.nodes, [], policy, NOW)

        assert starts(decision) == {"first": 2, "other": 2}
        assert decision.waiting["hers"].message == "quota token=ann: 1 of 1 running_jobs in use, needs 1"
        assert decision.waiting["his"].message == "quota project=p: 2 of 3 workers in use, needs 2"

    def test_a_quota_for_one_value_is_for_that_alone(self):
        """Only team a."""
        decision = self.decide([need("mine", 2, team="a"), need("theirs", 2, team="b")], value="a", workers=1)

        assert starts(decision) == {"theirs": 2}


class TestPreemption:
    """Who makes room."""

    def victims(self, queue, running, **placed):
        """Return who is paused on one full node of 8 CPUs."""
        return plan(queue, room((8, 0, 0, 0), **placed), running, Policy(preempt=True), NOW).preempt

    def test_the_lowest_priority_then_the_youngest_makes_room(self):
        """No more of them than needed, and none where the policy says no."""
        running = [held("job_1", 2, priority=1), held("job_2", 2), held("job_3", 2), held("job_4", 2, priority=9)]
        placed = {job.job_id: {"n0": 2} for job in running}

        assert self.victims([need("a", 2, priority=5)], running, **placed) == ("job_3",)
        assert self.victims([need("a", 4, priority=5)], running, **placed) == ("job_3", "job_2")
        assert self.victims([need("a", 6, priority=5)], running, **placed) == ("job_3", "job_2", "job_1")
        assert plan([need("a", 2, priority=5)], room((8, 0, 0, 0), **placed), running, NOBODY, NOW).preempt == ()

    def test_nobody_of_the_same_priority_or_above_and_nobody_in_vain(self):
        """All that are below would not be enough."""
        running = [held("job_1", 4), held("job_2", 4, priority=5)]

        assert self.victims([need("a", 5, priority=5)], running, job_1={"n0": 4}, job_2={"n0": 4}) == ()

    def test_whoever_turns_out_not_to_be_needed_stays(self):
        """The larger one, looked at later, makes the room alone."""
        running = [held("job_1", 7, priority=1), held("job_2", 1)]

        assert self.victims([need("a", 7, priority=5)], running, job_1={"n0": 7}, job_2={"n0": 1}) == ("job_1",)

    def test_while_room_is_being_made_nobody_else_is_paused_and_nobody_slips_in(self):
        """The victims are leaving, which is as good as gone."""
        running = [held("job_1", 4, is_leaving=True, is_pausable=False), held("job_2", 2)]
        decision = plan(
            [need("a", 6, priority=5), need("late", 2, hours=0.1)],
            room((8, 0, 2, 0), job_1={"n0": 4}, job_2={"n0": 2}), running, Policy(preempt=True), NOW,
        )  # fmt: skip

        assert decision.preempt == ()
        assert starts(decision) == {}


SHAPES = st.builds(
    lambda number, least, more, cpus, gpus, hours, priority, team: (least, least + more, Bundle(cpus, gpus), hours, priority, team),
    st.integers(0, 1), st.integers(1, 12), st.integers(0, 4), st.sampled_from([0.5, 1, 3]), st.integers(0, 1), st.sampled_from([1, 5, 100]),
    st.integers(-1, 1), st.sampled_from("ab"),
)  # fmt: skip


@st.composite
def situations(draw):
    """A cluster, gangs that stand on it, a queue in order, and a policy."""
    nodes = draw(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 4)), min_size=1, max_size=5))
    ledger = Ledger({f"n{i}": cpus for i, (cpus, _) in enumerate(nodes)}, {f"n{i}": gpus for i, (_, gpus) in enumerate(nodes)})
    running, placed = [], {}
    for number, (workers, _, bundle, hours, priority, team) in enumerate(draw(st.lists(SHAPES, max_size=5))):
        if ledger.slots(bundle) >= workers:
            name = f"job_{number}"
            placed[name] = ledger.take(bundle, workers)
            running.append(held(name, workers, bundle, hours=hours, priority=priority, team=team))
    seen = tuple(Node(name, *nodes[index], ledger.units[index] / 10_000, ledger.gpu_counts[index]) for name, index in ledger.index.items())
    queue = [
        need(f"new_{number}", most, bundle, hours=hours, least=least, priority=priority, team=team)
        for number, (least, most, bundle, hours, priority, team) in enumerate(draw(st.lists(SHAPES, max_size=12)))
    ]
    queue.sort(key=lambda one: -one.priority)
    quotas = draw(st.sampled_from([(), ({"label": "team", "workers": 8},), ({"label": "team", "value": "a", "running_jobs": 2},)]))
    return Room(seen, placed), running, queue, Policy.model_validate({"quotas": quotas, "preempt": draw(st.booleans())})


@settings(deadline=None, max_examples=150)
@given(situations())
def test_every_decision_is_sound(situation):
    """Whatever the situation: whole gangs, within the room and the quotas; every job has an answer; nobody is paused for an equal."""
    seen, running, queue, policy = situation
    decision = plan(queue, seen, running, policy, NOW)
    started = starts(decision)
    by_id = {one.job_id: one for one in queue}
    ledger = Ledger.of_free(seen)

    assert {*started, *decision.waiting} == by_id.keys()
    for job_id, workers in started.items():
        assert by_id[job_id].min_workers <= workers <= by_id[job_id].max_workers
        assert sum(ledger.take(by_id[job_id].bundle, workers).values()) == workers
    for quota in policy.quotas:
        mine = [job.workers for job in running if quota.group_of(job) == "a"]
        new = [workers for job_id, workers in started.items() if quota.group_of(by_id[job_id]) == "a"]
        assert not new or quota.workers is None or sum(mine) + sum(new) <= quota.workers
        assert not new or quota.running_jobs is None or len(mine) + len(new) <= quota.running_jobs
    for victim in decision.preempt:
        assert next(job for job in running if job.job_id == victim).priority < by_id[decision.reserved.job_id].priority


@settings(deadline=None, max_examples=150)
@given(situations(), st.randoms(use_true_random=False))
def test_wherever_the_gangs_come_to_stand_the_first_in_line_has_its_room_in_time(situation, chance):
    """Whoever starts behind it: placed anywhere, and each running as long as it may, they leave it what it needs when it needs it."""
    seen, running, queue, _ = situation
    decision = plan(queue, seen, running, NOBODY, NOW)
    if decision.reserved is None or decision.reserved.by is None:
        return
    names = [one.job_id for one in queue]
    first = queue[names.index(decision.reserved.job_id)]
    ledger = Ledger.of_free(seen)
    gone = [(job.bundle, seen.placed[job.job_id]) for job in running if job.ends_by(NOW) <= decision.reserved.by]
    for start in decision.start:
        one = queue[names.index(start.job_id)]
        is_before = names.index(start.job_id) < names.index(first.job_id)
        places = ledger.take(one.bundle, start.workers) if is_before else _anywhere(ledger, one.bundle, start.workers, chance)
        if NOW + one.timeout + GRACE <= decision.reserved.by:
            gone.append((one.bundle, places))
    for bundle, places in gone:  # only when all of them stand somewhere
        for node_id, workers in places.items():
            ledger.move(node_id, bundle, workers)

    assert ledger.slots(first.bundle) >= first.min_workers


def _anywhere(ledger, bundle, workers, chance):
    """Place workers on nodes by chance; those that find no place anywhere are not there."""
    places = {}
    for _ in range(workers):
        fitting = [node_id for node_id in ledger.index if ledger.slots_on(node_id, bundle)]
        if fitting:
            node_id = chance.choice(fitting)
            ledger.move(node_id, bundle, -1)
            places[node_id] = places.get(node_id, 0) + 1
    return places


UP_TO_8 = Growth(1, 8, is_asked=False)
HALF_FREE = room((8, 0, 4, 0), big={"n0": 3}, small={"n0": 1})


def grown(decision):
    """Return what grows, as {name: workers}."""
    return {start.job_id: start.workers for start in decision.grow}


def test_room_that_nobody_waits_for_goes_to_jobs_that_run():
    """Priority, then age; what one does not need the next one gets."""
    jobs = [held("big", 3, growth=UP_TO_8), held("small", 1, priority=1, growth=Growth(1, 2, is_asked=False))]

    assert grown(plan([], HALF_FREE, jobs, NOBODY, NOW)) == {"small": 2, "big": 6}


def test_the_queue_goes_first():
    """What starts takes the room; while a job waits for room, nobody grows."""
    jobs = [held("big", 3, growth=UP_TO_8), held("small", 1)]

    assert grown(plan([need("a", 3)], HALF_FREE, jobs, NOBODY, NOW)) == {"big": 4}
    assert grown(plan([need("a", 5)], HALF_FREE, jobs, NOBODY, NOW)) == {}
    assert grown(plan([need("never", 9)], HALF_FREE, jobs, NOBODY, NOW)) == {"big": 7}, "it keeps nobody waiting"


def test_a_job_with_a_fixed_number_grows_to_it_or_not_at_all():
    """Nothing in between was asked for."""
    jobs = lambda workers: [held("big", 3, growth=Growth(workers, workers, is_asked=True)), held("small", 1)]  # noqa: E731

    assert grown(plan([], HALF_FREE, jobs(7), NOBODY, NOW)) == {"big": 7}
    assert grown(plan([], HALF_FREE, jobs(8), NOBODY, NOW)) == {}


def test_a_job_grows_within_its_quota():
    """Its workers count, it is no new job, and who waits for the same quota goes first."""
    jobs = [held("big", 3, growth=UP_TO_8, team="a"), held("small", 1, team="b")]
    policy = Policy.model_validate({"quotas": [{"label": "team", "workers": 5, "running_jobs": 1}]})

    assert grown(plan([], HALF_FREE, jobs, policy, NOW)) == {"big": 5}
    assert grown(plan([need("next", 1, team="a")], HALF_FREE, jobs, policy, NOW)) == {}


def test_room_that_was_promised_to_a_job_is_taken():
    """A gang that grows holds its new workers before Ray has placed them."""
    promised = [held("big", 5), held("small", 1)]

    assert plan([need("a", 2), need("b", 1)], HALF_FREE, promised, NOBODY, NOW).start == (Start("a", 2),)
