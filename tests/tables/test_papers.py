"""The papers' numbers, read from the papers and not from our files, and what such a file may have."""

import json
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from fastpsl.tables.paper_file import TABLES, read_paper
from fastpsl.tables.rows import BLOCK_PROBE, Weights, with_mean

# The rows of the papers' tables, in their order. - is a dash there, * what our copy of the paper cuts off. A
# line with a colon is the heading of the rows below. Two names: the halves of the rows are two of our tables.
# Columns of SSL++'s Tables XIII and XIV are lines here. In C1 of its Table VII our copy has two numbers in a
# cell each of Rotation and AET, and none below: the second is Ours, as Tables X and XI print it.
PRINTED = {
    "psl/4": """
        Colorization [49]  39.6
        BigBiGAN [15]      56.6
        LA [51]            58.8
        NPID++ [37]        59.0
        MoCo [26]          60.6
        PIRL [37]          63.6
        CPC v2 [28]        63.8
        PCL [34]           65.9
        SwAV [9]           75.3
        Jigsaw [38]        45.7
        Jigsaw+PSL         50.9
        Rotation [21]      47.3
        Rotation*          48.6
        Rotation+PSL       53.3
        SimCLR [10]        61.9
        SimCLR+PSL         64.3
        MoCov2 [11]        67.5
        MoCov2+PSL         68.1
    """,
    "psl/5": """
        Supervised  11.6 33.3 48.7 67.9 75.5
        Jigsaw      12.4 28.0 39.9 45.7 34.2
        SL          10.8 27.2 39.6 45.5 34.7
        PSL         10.9 27.0 43.2 50.9 38.5
        PSL_f       10.8 27.3 43.1 51.0 38.2
    """,
    "psl/6": """
        Supervised  11.7 32.6 47.8 66.6 74.3
        Rotation    10.9 30.1 40.2 48.6 46.5
        SL          11.1 29.1 41.5 50.7 47.9
        PSL         11.3 30.8 42.9 53.3 49.5
        PSL_f       10.5 31.1 42.1 52.9 49.7
    """,
    "psl/7": """
        Supervised     48.4 80.4
        Jigsaw [38]    45.4 79.6
        Jigsaw+PSL     48.7 83.5
        Rotation [21]  52.1 82.5
        Rotation+PSL   54.8 83.7
    """,
    "psl/8": """
        Supervised     52.6 81.1 57.4  0.0
        Jigsaw [38]    48.9 75.1 52.9 -4.5
        Jigsaw+PSL     51.1 78.9 55.3 -2.1
        Rotation [21]  46.3 72.5 49.3 -8.1
        Rotation+PSL   47.6 74.6 51.1 -6.3
    """,
    "psl/9": """
        Supervised     87.5 51.5 45.4
        Jigsaw [38]    64.5 41.2 21.3
        Jigsaw+PSL     67.2 44.7 24.1
        Rotation [21]  63.5 41.9 23.0
        Rotation+PSL   65.9 43.0 25.9
    """,
    "uic/1": """
        UIC 3k   41.2 41.0 38.1 38.5
        UIC 5k   40.6 40.9 38.2 40.8
        UIC 10k  40.6 40.8 37.9 42.6
    """,
    "uic/2": """
        UIC 3k ×  41.2 41.0 38.1
        UIC 3k √  41.6 41.5 39.0
    """,
    "uic/3": """
        UIC 3k ×  39.5 39.9 37.9
        UIC 3k √  41.6 41.5 39.0
    """,
    "uic/4": """
        ImageNet labels        19.3 36.3 44.2 48.3 50.5
        Random                 11.6 17.1 16.9 16.3 14.1
        DeepCluster [2]        13.4 32.3 41.0 39.6 38.2
        SelfLabel 3k × 1 [1]      -    - 43.0 44.7 40.9
        SelfLabel 3k × 10 [1]  22.5 37.4 44.7 47.1 44.1
        Ours                   12.8 34.3 41.6 41.5 39.0
        Inpainting [32]        14.1 20.7 21.0 19.8 15.5
        Contenxt [8]           16.2 23.3 30.2 31.7 29.6
        BiGan [9]              17.7 24.5 31.0 29.9 28.0
        Colorization [41]      12.5 24.5 30.4 31.5 30.3
        Split-brain [42]       17.7 29.3 35.4 35.2 32.8
        Jigsaw puzzle [29]     18.2 28.8 34.0 33.9 27.1
        Counting [30]          18.0 30.6 34.3 32.5 25.7
        RotNet [14]            18.8 31.7 38.7 38.2 36.5
        AND [21]               15.6 27.0 35.9 39.7 37.9
        AET [40]               19.3 35.4 44.0 43.6 42.4
        RotNet+retrieval [13]  22.2 38.2 45.7 48.7 48.3
    """,
    "uic/5": """
        ImageNet Labels           78.9 79.9 56.8 48.0
        Random-RGB                33.2 57.0 44.5 30.1
        Random-Sobel              29.0 61.9 47.9 32.0
        DeepCluster [2]           72.0 73.7 55.4 45.1
        SelfLabeling 3k × 10 [1]     - 75.3 55.9 43.7
        Ours                      76.2 75.9 54.9 45.9
        Inpainting [32]           34.6 56.5 44.5 29.7
        BiGan [9]                 52.5 60.3 46.9 35.2
        Contenxt [8]              55.1 63.1 51.1    -
        Colorization [41]         61.5 65.9 46.9 35.6
        Split-brain [42]          63.0 67.1 46.7 36.0
        Jigsaw puzzle [29]           - 67.6 53.2 37.6
        Counting [30]                - 67.7 51.4 36.6
        RotNet [14]               70.87 72.97 54.4 39.1
        RotNet+retrieval [13]        - 74.7 58.0 45.9
    """,
    "uic/6": """
        UIC 3k, 224 px       48.79 53.03 62.46 65.05
        DeepCluster, 224 px  51.33 54.42 60.32 65.04
        UIC 3k, 84 px        52.43 54.76 54.40 52.85
        DeepCluster, 84 px   53.46 54.87 49.81 50.18
    """,
    "uic/7": """
        DeepCluster [2]          41.0 39.6 38.2    -
        SelfLabel 3k × 1 [1]     43.0 44.7 40.9    -
        SelfLabel 3k × 10 [1]    44.7 47.1 44.1    -
        UIC (Ours)               41.6 41.5 39.0 38.5
        UIC + strong aug (Ours)  43.5 45.6 44.3 40.0
    """,
    "uic/8": """
        Jigsaw [22]                                38.4    -
        Rotation [22]                              43.8    -
        InstDisc [37]                              54.0    -
        BigBiGAN [10]                              56.6    -
        Local Agg. [43]                            60.2    -
        Moco [16]                                  60.6    -
        PIRL [28]                                  63.6    -
        CPCv2 [18]                                 63.8    -
        SimCLR [4]                                 69.3    -
        Mocov2 [6]                                 71.1    -
        SelfLabel 3k × 1 [1]                       51.8    -
        SelfLabel 3k × 10 [1]                      55.7    -
        UIC + strong aug (Ours), VGG16             57.7 46.9
        UIC + strong aug (Ours), Res50             62.7 50.6
        UIC + strong aug (Ours), Res50 + MLP-head  64.4 53.3
    """,
    "sslpp/3 sslpp/3-stl": """
        Supervised    92.2 92.6 91.7 92.2 80.2 80.3 79.2 79.9
        Random        70.1 66.4 65.8 67.4 61.6 58.5 56.7 58.9
        Color. [6]    78.4 71.2 66.5 72.0 78.0 72.9 67.9 72.9
        Ours+Color.   81.1 76.0 74.2 77.1 82.7 80.1 75.8 79.5
        Context [7]   78.8 70.7 63.9 71.1 62.6 59.4 52.6 58.2
        Ours+Con.     86.6 82.9 74.7 81.4 82.4 77.9 71.3 77.2
        Rotation [8]  90.8 86.4 60.1 79.5 86.4 82.7 58.7 75.1
        Ours+Rot.     90.1 86.5 75.9 84.2 85.9 83.6 74.2 81.2
        AET [9]       90.7 86.2 59.4 78.8 86.5 80.5 54.5 73.8
        Ours+AET      90.9 86.8 75.7 84.5 87.7 84.6 75.0 82.4
    """,
    "sslpp/4": """
        Supervised    91.2 91.5 91.8 91.7
        Random        57.3 65.0 65.6 65.8
        Color. [6]    60.1 61.7 63.5 66.5
        Ours+Color.   72.5 75.1 75.4 74.2
        Context [7]   58.6 59.2 61.1 63.9
        Ours+Con.     72.8 75.8 75.6 74.7
        Rotation [8]  53.1 52.0 53.2 60.1
        Ours+Rot.     72.6 75.8 75.7 75.9
        AET [9]       59.8 61.6 62.6 59.4
        Ours+AET      74.1 76.1 75.9 75.7
    """,
    "sslpp/5 sslpp/5-stl": """
        Supervised    75.5 89.9 89.2 84.9 49.3 60.4 60.3 56.7
        Random        37.7 38.0 36.9 37.5 25.2 25.4 25.7 25.4
        Color. [6]    58.2 56.5 49.1 54.6 47.3 47.3 41.1 45.2
        Ours+Color.   60.9 61.4 61.1 61.1 50.8 53.5 55.5 53.4
        Context [7]   41.5 39.7 30.9 37.4 26.0 24.7 21.0 23.9
        Ours+Con.     62.8 67.3 64.0 64.7 47.6 51.9 49.1 49.5
        Rotation [8]  69.9 72.4 18.2 53.5 51.3 51.4 18.7 40.5
        Ours+Rot.     69.3 74.9 64.5 69.6 51.5 55.8 51.7 53.0
        AET [9]       70.4 68.3 25.1 54.6 50.5 48.1 18.1 38.9
        Ours+AET      72.1 75.9 66.4 71.5 53.5 58.3 53.5 55.1
    """,
    "sslpp/6": """
        Supervised    88.2 88.8 89.0 89.2 89.3 89.3 89.0
        Random        32.6 33.5 35.0 36.9 37.5 37.8 35.6
        Color. [6]    42.3 44.3 46.7 49.1 50.1 50.7 47.2
        Ours+Color.   54.4 57.0 59.1 61.1 61.3 61.9 59.1
        Context [7]   27.5 27.0 29.4 30.9 31.5 32.2 29.8
        Ours+Con.     58.3 60.9 62.5 64.0 64.4 64.9 62.5
        Rotation [8]  15.6 15.6 16.9 18.2 18.8 19.0 17.4
        Ours+Rot.     57.1 60.3 62.4 64.5 65.1 65.3 62.5
        AET [9]       20.0 21.1 22.6 25.1 26.1 26.1 23.5
        Ours+AET      60.4 62.6 64.9 66.4 67.2 67.5 64.8
    """,
    "sslpp/7": """
        Supervised    63.6 74.4 81.3 83.4 83.7 84.2 78.4
        Random        55.6 61.6 61.7 61.1 57.9 32.0 55.0
        Color. [6]    55.3 67.2 68.6 62.9 59.6 52.4 61.0
        Ours+Color.   59.6 70.0 74.1 71.1 67.3 62.4 67.4
        Context [7]   61.7 66.4 69.1 65.9 61.7 49.2 62.3
        Ours+Con.     62.9 72.8 75.4 73.5 70.2 62.9 69.6
        Rotation [8]  64.2 74.2 77.9 77.7 76.0 71.2 73.5
        Ours+Rot.     63.6 74.5 78.0 78.3 76.9 73.9 74.2
        AET [9]       62.1 72.3 76.4 76.0 73.4 64.5 70.8
        Ours+AET      62.0 74.3 77.4 77.2 75.2 69.2 72.6
    """,
    "sslpp/8": """
        Supervised    37.3 37.6 37.5 37.5 58.9 59.1 59.2 59.1 78.7 78.5 78.9 78.7 86.0 85.7 86.1 85.9
        Random        35.4 33.5 30.3 33.1 46.3 45.6 40.7 44.2 57.8 54.4 51.1 54.4 64.1 60.3 56.7 60.4
        Color. [6]    50.9 52.4 49.5 50.9 61.1 59.3 55.0 58.5 68.3 62.9 59.2 62.6 72.2 66.4 63.1 67.2
        Ours+Color.   56.8 59.1 57.7 57.9 67.7 65.8 62.3 65.3 73.8 70.8 66.8 70.5 77.9 73.8 69.3 73.7
        Context [7]   42.9 37.0 30.7 36.9 55.8 48.0 40.7 48.2 65.4 58.0 51.1 58.2 71.6 64.4 56.9 64.3
        Ours+Con.     57.5 60.8 58.7 59.0 68.6 66.8 61.8 65.7 76.6 71.7 66.1 71.5 79.9 75.0 69.5 74.8
        Rotation [8]  63.5 67.6 38.8 56.6 74.5 76.3 45.4 65.4 82.8 81.9 52.2 72.3 86.4 84.6 56.7 75.9
        Ours+Rot.     61.7 68.0 60.4 63.4 73.7 75.1 64.0 70.9 82.0 81.5 68.9 77.5 86.0 84.2 70.5 80.2
        AET [9]       68.1 68.8 36.2 57.7 78.3 75.1 45.4 66.3 83.8 79.5 56.0 73.1 87.4 82.5 58.8 76.2
        Ours+AET      67.6 69.8 61.5 66.3 77.6 75.3 65.3 72.7 83.6 79.9 68.8 77.4 86.7 82.6 71.4 80.2
    """,
    "sslpp/9": """
        Rotation [8]:
        Labels   90.3 88.1 85.0 87.8
        Random   89.2 85.4 60.0 78.2
        K-means  89.7 86.0 63.7 79.8
        Ours     90.1 86.5 75.9 84.2
        AET [9]:
        Labels   92.6 91.9 91.4 92.0
        Random   90.2 85.4 58.7 78.1
        K-means  90.1 85.8 62.1 79.3
        Ours     90.9 86.8 75.7 84.5
    """,
    "sslpp/10": """
        Rotation:
        Boosting [12]       63.3 73.6 77.2 76.3 74.3 72.0 72.8
        DeeperCluster [19]  55.3 70.5 75.1 72.9 68.6 59.2 66.9
        Decouple [17]       64.2 74.9 78.2 78.0 76.7 73.4 74.2
        Ours                63.6 74.5 78.0 78.3 76.9 73.9 74.2
        AET:
        Boosting [12]       61.5 72.2 76.0 75.2 70.9 67.0 70.5
        DeeperCluster [19]  58.8 70.8 75.2 73.7 69.9 67.7 69.4
        Ours                62.0 74.3 77.4 77.2 75.2 69.2 72.6
    """,
    "sslpp/11": """
        Re-training:
        AET   90.7 86.2 59.4 78.8
        SPL   84.1 78.7 71.1 78.0
        Ours  90.9 86.8 75.7 84.5
        KNN:
        AET   70.4 68.3 25.1 54.6
        SPL   61.4 64.5 61.3 62.4
        Ours  72.1 75.9 66.4 71.5
    """,
    "sslpp/11-stl": """
        Re-training:
        AET     *5 80.5 54.5 73.8
        SPL   79.3 73.3 66.2 72.9
        Ours  87.7 84.6 75.0 82.4
        KNN:
        AET   50.5 48.1 18.1 38.9
        SPL   45.7 44.3 45.4 45.1
        Ours  53.5 58.3 53.5 55.1
    """,
    "sslpp/11-yfcc": """
        AET   62.1 72.3 76.4 76.0 73.4 64.5 70.*
        SPL   62.4 72.2 75.8 74.5 70.2 67.5 70.*
        Ours  62.0 74.3 77.4 77.2 75.2 69.2 72.*
    """,
    "sslpp/12": """
        Coupled  85.2 81.5 67.7 78.1
        Ours     90.9 86.8 75.7 84.5
    """,
    "sslpp/13": """
        10 clusters   42.1 88.4 73.5
        30 clusters   46.1 89.0 74.2
        50 clusters   52.3 89.2 75.2
        70 clusters   54.4 90.1 75.9
        100 clusters  50.4 89.7 75.1
    """,
    "sslpp/14": """
        Cr / Cr               22.3 89.0 60.1
        Cr / Cr+F             23.1 89.1 61.0
        Cr / Cr+F+Co          30.3 89.5 66.4
        Cr+G / Cr+F+Co+G      50.1 89.6 74.4
        Cr+G+S / Cr+F+Co+G+S  54.4 90.1 75.9
    """,
}
# Rows that our tables have from other tables.
COPIED = {
    ("psl/ablations", "Jigsaw"): ("psl/5", "Jigsaw"),
    ("psl/ablations", "PSL"): ("psl/5", "PSL"),
    ("uic/3", "UIC 3k √, not tuned"): ("uic/2", "UIC 3k ×"),
    ("uic/7", "UIC, not tuned"): ("uic/1", "UIC 3k"),
    **{("sslpp/fig1", row.method): ("sslpp/7", row.method) for row in TABLES["sslpp/fig1"].rows},
}
# SSL++'s "fair comparison" under Table IX: SAID has its numbers.
OF_THE_TEXT = ("sslpp/9", "Rotation [8]: Ours, 10 clusters")

# The papers' slips: means that their cells do not have.
OTHER_MEANS = {
    ("sslpp/3", "Rotation [8]", "Avg."): 79.5,
    ("sslpp/3-stl", "Rotation [8]", "Avg."): 75.1,
    ("sslpp/5-stl", "Ours+Color.", "Avg."): 53.4,
    ("sslpp/8", "Color. [6]", "400: Avg."): 62.6,
}
NUM_MEANS = 132

# Numbers that the texts name: of a row, or what it adds to another one. UIC's text names none.
SAID: list[tuple[str, str, str | None, dict[str, float]]] = [
    ("psl/4", "MoCov2+PSL", "MoCov2 [11]", {"Top 1": 0.6}),  # section 4.1
    ("psl/4", "Jigsaw+PSL", "Jigsaw [38]", {"Top 1": 5.2}),  # 4.2
    ("psl/4", "Jigsaw [38]", None, {"Top 1": 45.7}),
    ("psl/4", "Jigsaw+PSL", None, {"Top 1": 50.9}),
    ("psl/4", "Rotation+PSL", "Rotation*", {"Top 1": 4.7}),
    ("psl/4", "Rotation*", None, {"Top 1": 48.6}),
    ("psl/4", "Rotation+PSL", None, {"Top 1": 53.3}),
    ("psl/4", "SimCLR+PSL", "SimCLR [10]", {"Top 1": 2.4}),
    ("psl/4", "SimCLR [10]", None, {"Top 1": 61.9}),
    ("psl/4", "SimCLR+PSL", None, {"Top 1": 64.3}),
    ("psl/7", "Jigsaw+PSL", "Jigsaw [38]", {"1% labels": 3.3, "10% labels": 3.9}),  # 4.3
    ("psl/7", "Rotation+PSL", "Rotation [21]", {"1% labels": 2.7, "10% labels": 1.2}),
    ("psl/8", "Jigsaw+PSL", "Jigsaw [38]", {"AP_all": 2.2, "AP50": 3.8, "AP75": 2.4}),  # 4.4.1: see OTHERWISE
    ("psl/8", "Rotation+PSL", "Rotation [21]", {"AP_all": 1.3, "AP50": 2.1, "AP75": 1.8}),
    ("psl/9", "Jigsaw+PSL", "Jigsaw [38]", {"PASCAL": 2.7, "Places": 3.5, "iNat18": 2.8}),  # 4.4.2
    ("psl/9", "Rotation+PSL", "Rotation [21]", {"PASCAL": 2.4, "Places": 1.1, "iNat18": 2.9}),
    ("sslpp/3", "Ours+Color.", "Color. [6]", {"Avg.": 5.1}),  # section V.B
    ("sslpp/3", "Ours+Con.", "Context [7]", {"Avg.": 10.3}),
    ("sslpp/3", "AET [9]", None, {"Avg.": 78.8}),
    ("sslpp/3", "Ours+AET", None, {"Avg.": 84.5}),
    ("sslpp/3-stl", "AET [9]", None, {"Avg.": 73.8}),
    ("sslpp/3-stl", "Ours+AET", None, {"Avg.": 82.4}),
    ("sslpp/3", "Random", None, {"B2": 70.1}),
    ("sslpp/8", "Ours+AET", None, {"20: Avg.": 66.3}),
    ("sslpp/8", "Supervised", None, {"20: Avg.": 37.5}),
    ("sslpp/7", "Ours+Color.", "Color. [6]", {"Fc": 10.0}),  # V.C
    ("sslpp/7", "Ours+Con.", "Context [7]", {"Fc": 13.7}),
    ("sslpp/7", "Ours+Rot.", "Rotation [8]", {"Fc": 2.7}),
    ("sslpp/7", "Ours+AET", "AET [9]", {"Fc": 4.7}),
    (*OF_THE_TEXT, None, {"B2": 88.4, "B3": 83.3, "B4": 73.5}),  # V.E
    ("sslpp/14", "Cr / Cr", None, {"Cluster Acc.": 22.3}),
    ("sslpp/14", "Cr+G+S / Cr+F+Co+G+S", None, {"Cluster Acc.": 54.4, "B4": 75.9}),
]
# Where a text and its table disagree: the two cells, the gain as the text has it, and that of the cells.
Cell = tuple[str, str]
OTHERWISE: list[tuple[str, Cell, Cell, float, float]] = [
    # PSL, 4.4.1: "{AP50, AP75, ΔAP75}", with the gains of AP_all, AP50, AP75.
    ("psl/8", ("Jigsaw+PSL", "AP50"), ("Jigsaw [38]", "AP50"), 2.2, 3.8),
    ("psl/8", ("Jigsaw+PSL", "AP75"), ("Jigsaw [38]", "AP75"), 3.8, 2.4),
    ("psl/8", ("Rotation+PSL", "AP50"), ("Rotation [21]", "AP50"), 1.3, 2.1),
    ("psl/8", ("Rotation+PSL", "AP75"), ("Rotation [21]", "AP75"), 2.1, 1.8),
    # SSL++, V.E: "the performance gap between B2 and B4 is 37.9%", of AET.
    ("sslpp/11", ("Re-training: AET", "B2"), ("Re-training: AET", "B4"), 37.9, 31.3),
]


def printed(name: str) -> list[tuple[str, list[str]]]:
    """Return what the paper prints of one of our tables: the methods of the rows, and their words."""
    rows: list[tuple[str, list[str]]] = []
    num = len(TABLES[name].columns)
    for names, block in ((key.split(), block) for key, block in PRINTED.items()):
        if name not in names:
            continue
        start, heading = num * names.index(name), ""
        for line in block.strip().splitlines():
            if line.endswith(":"):
                heading = f"{line.strip()} "
                continue
            method, *words = line.rsplit(maxsplit=num * len(names))
            rows.append((heading + method.strip(), words[start : start + num]))
    return rows


def fits(number: float | None, word: str) -> bool:
    """Return whether a cell of ours is what the paper prints there."""
    if number is None or word == "-":
        return number is None and word == "-"
    return fnmatchcase(str(number), word) if "*" in word else number == float(word)


def cell(table: str, method: str, column: str) -> float:
    number = TABLES[table].row(method).numbers[TABLES[table].columns.index(column)]
    assert number is not None
    return number


@pytest.mark.parametrize("name", TABLES)
def test_tables_have_what_the_papers_print_and_no_more(name: str) -> None:
    others = {*COPIED, OF_THE_TEXT}
    rows = [row for row in TABLES[name].rows if row.printed and (name, row.method) not in others]
    lines = printed(name)
    assert [row.method for row in rows] == [method for method, _ in lines]
    for row, (_, words) in zip(rows, lines, strict=True):
        assert len(words) == len(row.numbers) and all(map(fits, row.numbers, words)), (row, words)


def test_no_printed_table_is_missing() -> None:
    assert {name for names in PRINTED for name in names.split()} <= TABLES.keys()


def test_copied_rows_are_those_of_the_other_table() -> None:
    for (name, method), (other, there) in COPIED.items():
        row = TABLES[name].row(method)
        assert row.numbers == TABLES[other].row(there).numbers[: len(row.numbers)], (name, method)


def test_printed_means_are_those_of_their_cells() -> None:
    num, others = 0, {}
    for table in TABLES.values():
        for row in table.rows:
            cells: list[float] = []
            for title, number in zip(table.columns, row.numbers, strict=True):
                if number is None:
                    continue
                if not title.split()[-1].startswith("Avg"):
                    cells.append(number)
                    continue
                num += 1
                if abs(fmean(cells) - number) > 0.051:
                    others[table.name, row.method, title] = number
                cells = []
    assert others == OTHER_MEANS and num == NUM_MEANS


def test_printed_differences_from_the_supervised_row() -> None:
    for row in TABLES["psl/8"].rows:
        below = cell("psl/8", row.method, "AP75") - cell("psl/8", "Supervised", "AP75")
        assert cell("psl/8", row.method, "ΔAP75") == pytest.approx(below, abs=0.01)


def test_what_the_texts_say_is_what_the_cells_have() -> None:
    for table, method, baseline, numbers in SAID:
        for column, said in numbers.items():
            number = cell(table, method, column) - (cell(table, baseline, column) if baseline else 0.0)
            assert number == pytest.approx(said, abs=0.01), (table, method, column)
    for table, one, other, said, gain in OTHERWISE:
        number = cell(table, *one) - cell(table, *other)
        assert number == pytest.approx(gain, abs=0.01) and abs(number - said) > 0.051, (table, one)


def test_what_tables_say_beside_their_numbers() -> None:
    four, six, seven = TABLES["psl/4"], TABLES["psl/6"], TABLES["uic/7"]
    assert {row.method for row in four.rows if row.million_parameters == 86} == {"Rotation [21]"}
    assert {row.million_parameters for row in four.rows} == {24, 86}
    assert six.row("PSL_f").arch == "R50" and six.row("SL").arch == "Rv50"
    assert seven.row("SelfLabel 3k × 10 [1]").arch == "AlexNet+10heads"
    assert [TABLES[name].images.num_pretrain for name in ("psl/4", "sslpp/3-stl", "sslpp/7")] == [
        None, 105_000, 300_000,
    ]  # fmt: skip


ROW: dict[str, Any] = {"method": "One", "numbers": [1.0, None], "weights": "net"}
OTHER: dict[str, Any] = {
    "method": "Two", "arch": "Other", "numbers": [2.0, 3.0], "baseline": "One", "note": "ours",
}  # fmt: skip
IMAGES: dict[str, Any] = {"name": "CIFAR-10", "num_train": 4, "num_val": 2}
TABLE: dict[str, Any] = {
    "title": "A title", "columns": ["B2", "Avg."], "measured": "blocks", "rows": [ROW, OTHER],
    "notes": [{"shared": "far"}, "near"],
}  # fmt: skip
DEFAULTS = {
    "number": "%", "gains": "g", "unmeasured": "m", "unprinted": "p", "images": "all", "arch": "NIN",
}  # fmt: skip
NET = Weights("nin4")


def read(folder: Path, paper: Any) -> Any:
    path = folder / "some.json"
    path.write_text(paper if isinstance(paper, str) else json.dumps(paper))
    return read_paper(path, {"net": NET}, {"blocks": with_mean(BLOCK_PROBE, "b2"), "one": lambda weights: ()})


def paper(table: Any = TABLE, **changes: Any) -> dict[str, Any]:
    record = {
        "defaults": DEFAULTS,
        "images": {"all": IMAGES},
        "notes": {"far": "away"},
        "tables": {"1": table},
    }
    return record | changes


def with_row(**changes: Any) -> dict[str, Any]:
    return paper(TABLE | {"rows": [ROW | changes, OTHER]})


def test_a_file_is_read(tmp_path: Path) -> None:
    (table,) = read(tmp_path, paper())
    one, two = table.rows
    assert (table.name, table.columns, table.notes) == ("some/1", ("B2", "Avg."), ("away", "near"))
    assert table.images.num_train == 4 and (one.arch, two.arch) == ("NIN", "Other")
    assert one.numbers == (1.0, None) and two.numbers == (2.0, 3.0) and not two.measures
    assert [measure.of for measure in one.measures] == ["best", "mean"] and one.measures[0].weights == NET
    (table,) = read(tmp_path, paper(TABLE | {"rows": [{"method": "One", "weights": ["net", "net"]}]}))
    assert len(table.rows[0].measures) == 2 and not table.rows[0].printed


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("[]", "some.json: [] is no JSON object"),
        ('{"tables": {}, "tables": {}}', "some.json: a key stands twice among tables, tables"),
        ("{", "some.json: Expecting property name"),
        ({"tables": {}}, "some.json: lacks the fields defaults, images, notes"),
        (paper([]), "some.json, table 1: [] is no JSON object"),
        (paper(TABLE | {"gain": "g"}), "table 1: unknown field 'gain': allowed are title, number"),
        (paper(defaults={}), "table 1: lacks the fields number, images, gains, unmeasured, unprinted"),
        (paper(TABLE | {"images": "most"}), "table 1, images: unknown name 'most': allowed are all"),
        (paper(images={"all": IMAGES | {"num_val": 2.5}}), "images: the field num_val cannot be 2.5"),
        (paper(TABLE | {"notes": [{"shared": "x"}]}), "table 1, notes: unknown name 'x': allowed are far"),
        (paper(TABLE | {"rows": [ROW, ROW]}), "table 1: 'One' is two rows"),
        (with_row(baseline="Three"), "table 1: 'One' improves 'Three', which is no row"),
        (with_row(numbers=[1, None]), "table 1, row 1: the field numbers cannot be [1, None]"),
        (with_row(numbers=[1.0]), "table 1, row 1: [1.0] are not 2 percentages"),
        (with_row(numbers=[1.0, 101.0]), "table 1, row 1: [1.0, 101.0] are not 2 percentages"),
        (with_row(weights="nets"), "table 1, row 1, weights: unknown name 'nets': allowed are net"),
        (with_row(weights=["net"]), "table 1, row 1: weights and measured columns are not 2"),
        (with_row(measured="one"), "table 1, row 1: weights and measured columns are not 2"),
        (with_row(measured="two"), "table 1, row 1, measured: unknown name 'two': allowed are blocks, one"),
        (paper(TABLE | {"rows": [{"method": "One"}]}), "row 1: 'One' is neither printed nor measured"),
        (with_row(notes="x"), "table 1, row 1: unknown field 'notes'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path: Path, record: Any, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(tmp_path, record)
    assert words in str(caught.value)
