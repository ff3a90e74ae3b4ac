"""Data sets as a trial sees them: three splits, and views of the training images.

Each file of this folder that defines `SOURCE` is a data set; the file's name is its name. There are
two kinds:

- Small images of one size, which `image_table` keeps in one memory-mapped Arrow file: a
  `TableSplit` has all its pixels in one tensor, and makes views by tensor operations.
- Photographs of any size, which `image_folder` and `parquet` leave where they are: a
  `StreamedSplit` reads and decodes the images of the next batches in processes of their own, while
  the trial trains on the last one.

Whatever the kind, view v of image i is the same pixels in every batch, order, process and trial.
"""
