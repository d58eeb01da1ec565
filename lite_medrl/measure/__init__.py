"""Finds out what a model can do and cannot: Acc@1, Pass@K, the rule and the tests of difference."""
