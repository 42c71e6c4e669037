"""Evaluating guards: attack success, over-refusal, accuracy, detection and cost, with and without the guard.

`suite` says what is asked, `sets` reads public files, `answers` and `judges` mark what is said, `local` and `remote`
ask, `store` keeps every answer, `figures` and `results` count, `report` draws, `compare` sets two runs side by side.
"""
