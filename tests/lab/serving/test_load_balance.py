"""Sessions that stay on their machine spread more evenly the more machines they choose from."""

from minstate.lab.serving.load_balance import sessions_per_machine


def test_every_session_is_on_one_machine_and_a_choice_of_all_fills_them_evenly():
    for choices in (1, 2, 8):
        assert sum(sessions_per_machine(100, 8, choices)) == 100
    assert set(sessions_per_machine(64, 8, 8)) == {8}
    first, again, other = (sessions_per_machine(100, 8, 1, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
