"""What happens to rows before and after a judge reads them.

``text`` puts a row's form right, ``rules`` drops rows for what they say, with ``language``,
``duplicates`` and ``contamination`` behind the larger of them; ``reviews`` is what a person
decided by hand; ``funnel`` tells what became of every row. Importing these needs no torch.
"""
