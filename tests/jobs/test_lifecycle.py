"""The supervisor's decisions, played without clock, network or processes."""

from __future__ import annotations

import random

import pytest

from jobs.lifecycle import (
    TAKEN,
    ChildEnded,
    Command,
    Event,
    Failed,
    InputsFetched,
    Kept,
    Phase,
    Recorded,
    Restored,
    State,
    StopAsked,
    Terminated,
    Tick,
    TicketRead,
    Uploaded,
    decide,
)

DEADLINE = 1000.0
START = State(deadline=DEADLINE)
READ = TicketRead(save_reserve=100, ended=False)
STARTED = [Command.START_CHILD, Command.FETCH_INPUTS]
DONE = ChildEnded("completed", "", has_adapter=True)


def play(*events: tuple[float, Event], state: State = START) -> tuple[State, list[Command]]:
    said: list[Command] = []
    for now, event in events:
        state, commands = decide(state, event, now)
        said.extend(commands)
    return state, said


def test_a_good_life() -> None:
    state, said = play((1, READ), (2, InputsFetched()), (50, DONE), (60, Uploaded()), (61, Recorded()))
    assert said == [
        Command.START_CHILD, Command.FETCH_INPUTS, Command.RELEASE_CHILD,
        Command.UPLOAD, Command.RECORD, Command.TEAR_DOWN,
    ]  # fmt: skip
    assert (state.phase, state.status) == (Phase.DOWN, "completed")


def test_a_restarted_container_does_not_train_twice() -> None:
    state, said = play((1, TicketRead(save_reserve=100, ended=True)))
    assert said == [Command.TEAR_DOWN]
    assert state.phase is Phase.DOWN


def test_near_the_deadline_training_is_stopped_then_killed_and_what_is_saved_is_uploaded() -> None:
    state, said = play((1, READ), (2, InputsFetched()), (899, Tick()))
    assert said[-1] is Command.RELEASE_CHILD
    state, said = play((900, Tick()), (901, Tick()), (949, Tick()), (950, Tick()), (951, Tick()), state=state)
    assert said == [Command.STOP_CHILD, Command.KILL_CHILD]
    state, said = play((952, ChildEnded("stopped", "killed", has_adapter=True)), (953, Uploaded()), state=state)
    assert said == [Command.UPLOAD, Command.RECORD]
    assert (state.status, state.reason) == ("stopped", "the deadline is near")


@pytest.mark.parametrize("phase", [p for p in Phase if p is not Phase.DOWN])
def test_the_deadline_ends_every_phase(phase: Phase) -> None:
    state, said = play((DEADLINE, Tick()), state=State(deadline=DEADLINE, phase=phase))
    assert state.phase is Phase.DOWN
    assert said == [Command.KILL_CHILD, Command.TEAR_DOWN]


def test_a_stop_before_training_is_recorded_without_an_adapter() -> None:
    state, said = play((1, StopAsked("cancelled")), (2, READ))
    assert said == [Command.RECORD]
    assert (state.status, state.reason) == ("stopped", "cancelled")
    state, said = play((1, READ), (2, StopAsked("cancelled")), (3, Restored(found=False)))
    assert said == [*STARTED, Command.KILL_CHILD, Command.RECORD]
    state, said = play((1, READ), (2, Restored(found=False)), (3, StopAsked("cancelled")))
    assert said == [*STARTED, Command.KILL_CHILD, Command.RECORD]
    # Inputs that arrive afterwards must not start a trainer.
    assert play((3, InputsFetched()), state=state)[1] == []


def test_a_stop_during_training_saves_what_is_trained() -> None:
    state, said = play((1, READ), (2, InputsFetched()), (3, StopAsked("cancelled")), (4, StopAsked("again")))
    assert said[-1] is Command.STOP_CHILD
    assert said.count(Command.STOP_CHILD) == 1
    state, said = play((5, ChildEnded("stopped", "", has_adapter=True)), state=state)
    assert (said, state.reason) == ([Command.UPLOAD], "cancelled")


def test_a_crash_without_an_adapter_is_a_failure_with_its_reason() -> None:
    state, said = play((1, READ), (2, InputsFetched()), (3, ChildEnded("failed", "exit code 1", has_adapter=False)))
    assert (said[-1], state.status, state.reason) == (Command.RECORD, "failed", "exit code 1")


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([(1, Failed("no ticket"))], "failed"),
        ([(1, READ), (2, Failed("no input")), (3, Restored(found=False))], "failed"),
        ([(1, READ), (2, Restored(found=False)), (3, Failed("no input"))], "failed"),
        ([(1, READ), (2, InputsFetched()), (3, DONE), (4, Failed("store away"))], "failed"),
        ([(1, READ), (2, InputsFetched()), (3, DONE), (4, Uploaded()), (5, Failed("store away"))], "completed"),
    ],
)
def test_a_failure_is_said_and_the_machine_ends(events: list[tuple[float, Event]], status: str) -> None:
    state, said = play(*events)
    if state.phase is Phase.RECORD:
        state, more = play((6, Recorded()), state=state)
        said += more
    assert (state.phase, state.status) == (Phase.DOWN, status)
    assert said[-1] is Command.TEAR_DOWN
    assert state.reason


RENTED = TicketRead(save_reserve=100, ended=False, rented=True)
TRAINING = ((1, RENTED), (2, Restored(found=False)), (3, InputsFetched()))


def test_a_rented_machine_that_is_taken_away_leaves_a_checkpoint_and_no_outcome() -> None:
    state, said = play(*TRAINING, (4, Terminated()), (5, Terminated()))
    assert said[-1] is Command.STOP_CHILD
    assert said.count(Command.STOP_CHILD) == 1
    state, said = play((6, ChildEnded("stopped", "SIGTERM", has_adapter=True)), (7, Kept()), state=state)
    assert said == [Command.KEEP, Command.TEAR_DOWN]
    assert (state.phase, state.reason) == (Phase.DOWN, TAKEN)


def test_elsewhere_a_signal_to_end_is_a_wish_and_the_adapter_is_saved() -> None:
    own = ((1, READ), (2, InputsFetched()), (3, Terminated()), (4, ChildEnded("stopped", "", has_adapter=True)))
    state, said = play(*own)
    assert said[-2:] == [Command.STOP_CHILD, Command.UPLOAD]
    assert state.status == "stopped"
    assert "SIGTERM" in state.reason


def test_the_users_stop_wins_over_a_machine_that_is_taken_away() -> None:
    ended = ChildEnded("stopped", "", has_adapter=True)
    for order in ((StopAsked("cancelled"), Terminated()), (Terminated(), StopAsked("cancelled"))):
        state, said = play(*TRAINING, (4, order[0]), (5, order[1]), (6, ended), (7, Uploaded()))
        assert said[-3:] == [Command.STOP_CHILD, Command.UPLOAD, Command.RECORD]
        assert (state.status, state.reason) == ("stopped", "cancelled")


def test_a_training_that_ends_while_its_machine_is_taken_away_is_completed() -> None:
    state, said = play(*TRAINING, (4, Terminated()), (5, DONE), (6, Uploaded()))
    assert said[-2:] == [Command.UPLOAD, Command.RECORD]
    assert (state.status, state.reason) == ("completed", "")


@pytest.mark.parametrize(
    "events", [[(1, Terminated()), (2, RENTED)], [(1, RENTED), (2, Terminated())], [*TRAINING[:2], (3, Terminated())]]
)
def test_a_rented_machine_that_is_taken_away_before_it_trains_just_ends(events: list[tuple[float, Event]]) -> None:
    state, said = play(*events)
    assert state.phase is Phase.DOWN
    assert Command.RECORD not in said
    assert (Command.START_CHILD in said) == (Command.KILL_CHILD in said)


def test_a_last_checkpoint_that_takes_too_long_is_ended_by_the_deadline() -> None:
    state, said = play(*TRAINING, (4, Terminated()), (950, Tick()), (951, Tick()))
    assert said[-2:] == [Command.STOP_CHILD, Command.KILL_CHILD]
    assert play((952, Failed("store away")), state=state)[1] == [Command.TEAR_DOWN]
    assert play((DEADLINE, Tick()), state=state)[1] == [Command.KILL_CHILD, Command.TEAR_DOWN]


def test_a_trainer_that_was_killed_goes_on_from_its_new_checkpoint() -> None:
    killed = ChildEnded("stopped", "signal 9", has_adapter=True, resumable=True)
    state, said = play(*TRAINING, (4, killed), (5, killed))
    assert said[-3:] == [Command.RELEASE_CHILD, Command.START_CHILD, Command.START_CHILD]
    assert state.phase is Phase.TRAIN
    # One that we ended ourselves does not.
    assert play(*TRAINING, (4, StopAsked("cancelled")), (5, killed))[1][-1] is Command.UPLOAD


@pytest.mark.parametrize(
    "why",
    [
        (4, StopAsked("cancelled")),
        (950, Tick()),
        (950, InputsFetched()),
        (4, Failed("no input")),
        (4, ChildEnded("failed", "no such library", has_adapter=False)),
    ],
)
def test_what_an_earlier_machine_trained_is_saved_when_this_one_cannot_train(why: tuple[float, Event]) -> None:
    state, said = play((1, RENTED), (2, Restored(found=True)), why, (960, Uploaded()))
    assert said == [*STARTED, Command.KILL_CHILD, Command.UPLOAD, Command.RECORD]
    assert state.status == "stopped"
    assert state.reason


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (StopAsked("enough"), "stopped"),
        (Failed("enough"), "failed"),
        (Failed("enough", during=Phase.FETCH), "failed"),
        (ChildEnded("failed", "enough", has_adapter=False), "failed"),
    ],
)
def test_an_end_waits_until_it_is_known_what_an_earlier_machine_trained(end: Event, status: str) -> None:
    state, said = play((1, RENTED), (2, end), (3, Restored(found=True)), (4, InputsFetched()))
    assert said == [*STARTED, Command.KILL_CHILD, Command.UPLOAD]
    assert (state.status, state.reason) == ("stopped", "enough")
    # Not for ever: what comes too slowly is given up.
    state, said = play((1, RENTED), (2, end), (900, Tick()))
    assert said == [*STARTED, Command.KILL_CHILD, Command.RECORD]
    assert (state.status, state.reason) == (status, "enough")


def test_a_trainer_that_we_had_to_kill_is_not_called_short_of_memory() -> None:
    state, said = play((1, READ), (2, InputsFetched()), (900, Tick()), (950, Tick()))
    state, said = play((951, ChildEnded("failed", "killed (signal 9)", has_adapter=False)), state=state)
    assert (said, state.status) == ([Command.RECORD], "failed")
    assert state.reason == "the deadline is near; the trainer did not end by itself in time, and was killed"


def test_ten_thousand_random_lives_all_end_and_never_train_twice() -> None:
    """Any events in any order: the machine goes down by its deadline, trains at most once, records at most once."""
    for seed in range(10_000):
        rng = random.Random(seed)
        state, now, resumed = START, 0.0, 0
        said: list[Command] = []
        while state.phase is not Phase.DOWN:
            now += rng.expovariate(1 / 40)
            event = rng.choice(
                [
                    Tick(),
                    TicketRead(rng.choice([0, 100, 990]), rng.random() < 0.1, rng.random() < 0.5),
                    Restored(rng.random() < 0.3),
                    InputsFetched(),
                    ChildEnded(
                        rng.choice(["completed", "stopped", "failed"]), "", rng.random() < 0.7, rng.random() < 0.1
                    ),
                    Terminated(),
                    Kept(),
                    Uploaded(),
                    Recorded(),
                    StopAsked("asked"),
                    Failed("broken"),
                    Failed("not here", during=Phase.FETCH),
                ]
            )
            resumed += isinstance(event, ChildEnded) and event.resumable and state.phase is Phase.TRAIN
            state, commands = decide(state, event, now)
            said.extend(commands)
            assert now < DEADLINE or state.phase is Phase.DOWN, f"seed {seed}"
        assert said.count(Command.START_CHILD) <= 1 + resumed, f"seed {seed}"
        # Only what it was let go on for can train, and what waits in vain is killed.
        assert said.count(Command.RELEASE_CHILD) <= 1, f"seed {seed}"
        assert Command.START_CHILD not in said or {Command.RELEASE_CHILD, Command.KILL_CHILD} & set(said), (
            f"seed {seed}"
        )
        assert not {Command.KEEP, Command.RECORD} <= set(said), f"seed {seed}"
        assert said.count(Command.RECORD) <= 1, f"seed {seed}"
        assert said.count(Command.TEAR_DOWN) == 1, f"seed {seed}"
        uploads_after_training = Command.UPLOAD not in said or Command.RELEASE_CHILD in said or state.restored
        assert uploads_after_training, f"seed {seed}"


def test_what_breaks_beside_the_training_saves_what_is_trained() -> None:
    state, said = play((1, READ), (2, InputsFetched()), (3, Failed("a thread broke")))
    assert (state.phase, said[-1]) == (Phase.STOPPING, Command.STOP_CHILD)
    state, said = play((4, ChildEnded("stopped", "", has_adapter=True)), state=state)
    assert (said, state.status, state.reason) == ([Command.UPLOAD], "stopped", "a thread broke")


def test_a_trainer_that_ends_before_its_inputs_are_here_ends_the_run_at_once() -> None:
    ended = ChildEnded("failed", "no such library", has_adapter=False)
    state, said = play((1, READ), (2, Restored(found=False)), (3, ended), (4, InputsFetched()))
    assert said == [*STARTED, Command.KILL_CHILD, Command.RECORD]
    assert (state.status, state.reason) == ("failed", "no such library")


def test_a_download_that_nobody_waits_for_any_more_may_fail() -> None:
    late = Failed("broken off", during=Phase.FETCH)
    state, said = play((1, READ), (2, Restored(found=False)), (3, StopAsked("cancelled")), (4, late), (5, Recorded()))
    assert said[-2:] == [Command.RECORD, Command.TEAR_DOWN]
    assert (state.status, state.reason) == ("stopped", "cancelled")
