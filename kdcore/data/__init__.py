"""Data sets: three splits, and deterministic views of the training images.

Each file that defines `SOURCE` is a data set of the same name. There are two kinds:

- Small images of one size, which `image_table` stores in one memory-mapped Arrow file. A
  `TableSplit` has all pixels in one tensor and augments them by tensor operations. They come from
  `published_files` in formats of their own, or from encoded images, which `small_images` decodes.
- Photographs of any size, which `image_folder` and `parquet` read from where they are. A
  `StreamedSplit` decodes the next batches in separate processes while the current one trains.

For both, view v of image i has the same pixels in every batch, order, process and trial.
"""
