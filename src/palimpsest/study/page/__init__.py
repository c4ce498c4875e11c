"""The page of a study's report, a module a section: what it shows is made of records, how it looks is page.css.

matrix    which mark survives which removal            words     the verdicts in sentences
plane     hit rate against utility lost, and ranks     costs     what each removal took
details   what a cell opens                            commands  how to repeat it
published the papers' numbers beside ours              answers   ordinary answers, where no key can show in them
"""
