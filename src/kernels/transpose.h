/* Changes of memory order: everything that moves elements and computes nothing. */

/* block[i] becomes column i: log2(LANES) rounds of perfect shuffles */
static inline void FN(transpose_block)(VEC *block)
{
    for (int round = 1; round < LANES; round *= 2) {
        VEC next[LANES];
        UNROLL for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = FN(zip_low)(block[i], block[i + LANES / 2]);
            next[2 * i + 1] = FN(zip_high)(block[i], block[i + LANES / 2]);
        }
        UNROLL for (int i = 0; i < LANES; i++) block[i] = next[i];
    }
}

#if VBYTES == 64
#define ZIP_ONES(part, a, b) (VEC)_mm512_unpack##part##_ps((__m512)(a), (__m512)(b))
#define ZIP_PAIRS(part, a, b) (VEC)_mm512_unpack##part##_pd((__m512d)(a), (__m512d)(b))
#elif VBYTES == 32
#define ZIP_ONES(part, a, b) (VEC)_mm256_unpack##part##_ps((__m256)(a), (__m256)(b))
#define ZIP_PAIRS(part, a, b) (VEC)_mm256_unpack##part##_pd((__m256d)(a), (__m256d)(b))
#endif
#ifdef ZIP_PAIRS
/* A vector of pieces of 16 bytes that lie `step` elements apart. */
static inline VEC FN(pieces)(const REAL *p, isize step)
{
#if VBYTES == 64 && FLOAT_BITS == 32
    __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(p));
    v = _mm512_mask_broadcast_f32x4(v, 0x00f0, _mm_loadu_ps(p + step));
    v = _mm512_mask_broadcast_f32x4(v, 0x0f00, _mm_loadu_ps(p + 2 * step));
    return (VEC)_mm512_mask_broadcast_f32x4(v, 0xf000, _mm_loadu_ps(p + 3 * step));
#elif VBYTES == 64
    __m512d v = _mm512_castpd128_pd512(_mm_loadu_pd(p));
    v = _mm512_mask_broadcast_f64x2(v, 0x0c, _mm_loadu_pd(p + step));
    v = _mm512_mask_broadcast_f64x2(v, 0x30, _mm_loadu_pd(p + 2 * step));
    return (VEC)_mm512_mask_broadcast_f64x2(v, 0xc0, _mm_loadu_pd(p + 3 * step));
#elif FLOAT_BITS == 32
    __m256 v = _mm256_castps128_ps256(_mm_loadu_ps(p));
    return (VEC)_mm256_insertf128_ps(v, _mm_loadu_ps(p + step), 1);
#else
    __m256d v = _mm256_castpd128_pd256(_mm_loadu_pd(p));
    return (VEC)_mm256_insertf128_pd(v, _mm_loadu_pd(p + step), 1);
#endif
}

/* dst[j * dst_step + i] = src[i * src_step + j] for a whole block: loads and blends bring
 * the pieces to their places, which spares the one unit that shuffles across vectors
 * (planes of 16 to 64 channels are turned 1.2 to 1.5 times as fast). */
static __attribute__((noinline)) void FN(turn_block)(REAL *dst, isize dst_step,
                                                     const REAL *src, isize src_step)
{
    enum { PIECE = 16 / sizeof(REAL) };
    UNROLL for (int j = 0; j < LANES; j += PIECE) {
        VEC v[PIECE];
        UNROLL for (int i = 0; i < PIECE; i++)
            v[i] = FN(pieces)(src + i * src_step + j, PIECE * src_step);
#if FLOAT_BITS == 32
        VEC a = ZIP_ONES(lo, v[0], v[1]), b = ZIP_ONES(hi, v[0], v[1]);
        VEC c = ZIP_ONES(lo, v[2], v[3]), d = ZIP_ONES(hi, v[2], v[3]);
        v[0] = ZIP_PAIRS(lo, a, c), v[1] = ZIP_PAIRS(hi, a, c);
        v[2] = ZIP_PAIRS(lo, b, d), v[3] = ZIP_PAIRS(hi, b, d);
#else
        VEC a = ZIP_PAIRS(lo, v[0], v[1]);
        v[1] = ZIP_PAIRS(hi, v[0], v[1]), v[0] = a;
#endif
        UNROLL for (int i = 0; i < PIECE; i++, dst += dst_step) FN(store)(dst, v[i]);
    }
}
#undef ZIP_ONES
#undef ZIP_PAIRS
#define FAST_BLOCKS
#endif

static inline void FN(load_block)(VEC *block, const REAL *src, isize step,
                                  isize rows, isize cols)
{
    if (rows >= LANES && cols >= LANES) {
        UNROLL for (int i = 0; i < LANES; i++) block[i] = FN(load)(src + i * step);
    } else {
        UNROLL for (int i = 0; i < LANES; i++)
            block[i] = i < rows ? (cols >= LANES ? FN(load)(src + i * step)
                                                 : FN(load_part)(src + i * step, cols))
                                : (VEC){0};
    }
    FN(transpose_block)(block);
}

/* 2, 3 or 4 rows side by side: dst[j * rows + i] = src[i * src_step + j] for whole
 * vectors of columns; returns how many (gradients of weights of 3 planes: 8 to 10 %). */
static isize FN(interleave)(REAL *dst, const REAL *src, isize src_step, isize rows,
                            isize cols)
{
    isize j = 0;
#if VBYTES / (FLOAT_BITS / 8) >= 4
    for (; j + LANES <= cols; j += LANES, dst += rows * LANES) {
        VEC a = FN(load)(src + j), b = FN(load)(src + src_step + j);
        if (rows == 2) {
            FN(store)(dst, FN(zip_low)(a, b));
            FN(store)(dst + LANES, FN(zip_high)(a, b));
            continue;
        }
        VEC c = FN(load)(src + 2 * src_step + j);
        VEC d = rows == 4 ? FN(load)(src + 3 * src_step + j) : c;
        VEC ac = FN(zip_low)(a, c), bd = FN(zip_low)(b, d), v[4];
        v[0] = FN(zip_low)(ac, bd);
        v[1] = FN(zip_high)(ac, bd);
        ac = FN(zip_high)(a, c), bd = FN(zip_high)(b, d);
        v[2] = FN(zip_low)(ac, bd);
        v[3] = FN(zip_high)(ac, bd);
        if (rows == 4) {
            UNROLL for (int q = 0; q < 4; q++) FN(store)(dst + q * LANES, v[q]);
        } else { /* what is too much the next vector overwrites */
            UNROLL for (int q = 0; q < 3; q++)
                FN(store)(dst + 3 * q * LANES / 4, FN(threes)(v[q]));
            FN(store_part)(dst + 9 * LANES / 4, FN(threes)(v[3]), 3 * LANES / 4);
        }
    }
#endif
    return j;
}

/* The same for fewer rows or columns. A function of its own, as `turn_block`, so that
 * compilers do not keep an address for each row of both. */
static __attribute__((noinline)) void FN(turn_part)(REAL *dst, isize dst_step,
                                                    const REAL *src, isize src_step,
                                                    isize rows, isize cols)
{
    isize wide = cols < LANES ? cols : LANES;
    VEC block[LANES];
    FN(load_block)(block, src, src_step, rows, wide);
    if (rows >= LANES && wide == LANES)
        UNROLL for (int q = 0; q < LANES; q++) FN(store)(dst + q * dst_step, block[q]);
    else if (rows >= LANES)
        for (isize q = 0; q < wide; q++) FN(store)(dst + q * dst_step, block[q]);
    else
        for (isize q = 0; q < wide; q++)
            FN(store_part)(dst + q * dst_step, block[q], rows);
}

static void FN(transpose)(void *dst_, isize dst_step, const void *src_, isize src_step,
                          isize rows, isize cols)
{
    REAL *dst = dst_;
    const REAL *src = src_;
    if (2 <= rows && rows <= 4 && dst_step == rows) {
        isize done = FN(interleave)(dst, src, src_step, rows, cols);
        dst += done * rows, src += done, cols -= done;
    }
    for (isize i = 0; i < rows; i += LANES)
        for (isize j = 0; j < cols; j += LANES) {
            REAL *to = dst + j * dst_step + i;
            const REAL *from = src + i * src_step + j;
#ifdef FAST_BLOCKS
            if (rows - i >= LANES && cols - j >= LANES) {
                FN(turn_block)(to, dst_step, from, src_step);
                continue;
            }
#endif
            FN(turn_part)(to, dst_step, from, src_step, rows - i, cols - j);
        }
}
#undef FAST_BLOCKS

static void FN(copy)(void *dst_, isize dst_row, isize dst_col, const void *src_,
                     isize src_row, isize src_col, isize rows, isize cols)
{
    REAL *dst = dst_;
    const REAL *src = src_;
    if (cols == 1) { /* one column is a row */
        cols = rows, rows = 1;
        dst_col = dst_row, src_col = src_row;
    }
    if (dst_col == 1 && src_col == 1) {
        if (dst_row == cols && src_row == cols) cols *= rows, rows = 1;
        if (cols == LANES) {
            for (isize i = 0; i < rows; i++)
                FN(store)(dst + i * dst_row, FN(load)(src + i * src_row));
            return;
        }
        if (cols == 2 * LANES) {
            for (isize i = 0; i < rows; i++) {
                FN(store)(dst + i * dst_row, FN(load)(src + i * src_row));
                FN(store)(dst + i * dst_row + LANES,
                          FN(load)(src + i * src_row + LANES));
            }
            return;
        }
        if (cols > 16 * LANES) {
            for (isize i = 0; i < rows; i++)
                memcpy(dst + i * dst_row, src + i * src_row,
                       (size_t)cols * sizeof(REAL));
            return;
        }
        for (isize i = 0; i < rows; i++) { /* short rows: no call for each */
            const REAL *from = src + i * src_row;
            REAL *to = dst + i * dst_row;
            isize j = 0;
            for (; j + LANES <= cols; j += LANES) FN(store)(to + j, FN(load)(from + j));
            if (j < cols) FN(store_part)(to + j, FN(load_part)(from + j, cols - j), cols - j);
        }
    } else if (rows > 1 && dst_row == 1 && src_col == 1) {
        FN(transpose)(dst, dst_col, src, src_row, rows, cols);
    } else if (rows > 1 && dst_col == 1 && src_row == 1) {
        FN(transpose)(dst, dst_row, src, src_col, cols, rows);
    } else if (dst_col == 1 && src_col == 2) { /* every other column */
        for (isize i = 0; i < rows; i++) {
            const REAL *from = src + i * src_row;
            REAL *to = dst + i * dst_row;
            isize j = 0;
            /* not to the end: the element behind the last one may not be there */
            for (; j + LANES < cols; j += LANES)
                FN(store)(to + j, FN(even)(FN(load)(from + 2 * j),
                                           FN(load)(from + 2 * j + LANES)));
            for (; j < cols; j++) to[j] = from[2 * j];
        }
    } else if (rows > 1 && cols > 1 && src_col == 1 && dst_row < dst_col) {
        /* to planes with gaps between columns: line by line of dst */
        for (isize i = 0; i < rows; i += LANES)
            for (isize j = 0; j < cols; j += LANES) {
                isize high = rows - i < LANES ? rows - i : LANES;
                isize wide = cols - j < LANES ? cols - j : LANES;
                VEC block[LANES];
                REAL line[LANES];
                FN(load_block)(block, src + i * src_row + j, src_row, high, wide);
                for (isize q = 0; q < wide; q++) {
                    REAL *to = dst + i * dst_row + (j + q) * dst_col;
                    FN(store)(line, block[q]);
                    for (isize p = 0; p < high; p++) to[p * dst_row] = line[p];
                }
            }
    } else {
        for (isize i = 0; i < rows; i++)
            for (isize j = 0; j < cols; j++)
                dst[i * dst_row + j * dst_col] = src[i * src_row + j * src_col];
    }
}

static void FN(pack)(void *dst_, const isize *to, isize width, const void *src_,
                     isize src_step, isize rows, isize cols)
{
    REAL *dst = dst_;
    const REAL *src = src_;
    for (isize i = 0; i < width; i += LANES) {
        isize high = rows - i;
        for (isize j = 0; j < cols; j += LANES) {
            isize wide = cols - j < LANES ? cols - j : LANES;
            VEC block[LANES];
            FN(load_block)(block, src + i * src_step + j, src_step, high, wide);
            for (isize q = 0; q < wide; q++)
                if (to[j + q] >= 0) FN(store)(dst + to[j + q] * width + i, block[q]);
        }
    }
}

/* Fixed halving: the same bits however the parts were computed. */
static inline VEC FN(sum_tree)(const REAL *part, isize step, isize count, isize n)
{
    VEC stack[64];
    int depth = 0;
    for (isize p = 0; p < count; p++) {
        VEC sum = n >= LANES ? FN(load)(part + p * step)
                             : FN(load_part)(part + p * step, n);
        for (isize carry = p; carry & 1; carry >>= 1) sum += stack[--depth];
        stack[depth++] = sum;
    }
    VEC sum = stack[--depth];
    while (depth > 0) sum += stack[--depth];
    return sum;
}

static void FN(sum_parts)(void *dst_, const void *parts_, isize step, isize count,
                          isize size)
{
    REAL *dst = dst_;
    const REAL *parts = parts_;
    for (isize i = 0; i < size; i += LANES) {
        VEC sum = FN(sum_tree)(parts + i, step, count, size - i);
        if (size - i >= LANES)
            FN(store)(dst + i, sum);
        else
            FN(store_part)(dst + i, sum, size - i);
    }
}

/* dst[i] += sum over j of src[i, j], in the order of j, for rows that lie side by
 * side (channels last) or for columns that do (planes) */
static void FN(sum_rows)(void *dst_, const void *src_, isize src_row, isize src_col,
                         isize rows, isize cols)
{
    REAL *dst = dst_;
    const REAL *src = src_;
    if (src_row == 1) {
        isize i = 0;
        /* four vectors at a time: one sum alone waits for its additions */
        for (; i + 4 * LANES <= rows; i += 4 * LANES) {
            VEC sum[4] = {{0}};
            for (isize j = 0; j < cols; j++)
                UNROLL for (int v = 0; v < 4; v++)
                    sum[v] += FN(load)(src + i + v * LANES + j * src_col);
            UNROLL for (int v = 0; v < 4; v++)
                FN(store)(dst + i + v * LANES, FN(load)(dst + i + v * LANES) + sum[v]);
        }
        for (; i < rows; i += LANES) {
            isize n = rows - i;
            VEC sum = {0};
            if (n >= LANES) {
                for (isize j = 0; j < cols; j++) sum += FN(load)(src + i + j * src_col);
                FN(store)(dst + i, FN(load)(dst + i) + sum);
            } else {
                for (isize j = 0; j < cols; j++)
                    sum += FN(load_part)(src + i + j * src_col, n);
                FN(store_part)(dst + i, FN(load_part)(dst + i, n) + sum, n);
            }
        }
        return;
    }
    for (isize i = 0; i < rows; i++) {
        const REAL *row = src + i * src_row;
        REAL total = 0;
        isize j = 0;
        if (src_col == 1) {
            VEC sum[4] = {{0}};
            for (; j + 4 * LANES <= cols; j += 4 * LANES)
                UNROLL for (int v = 0; v < 4; v++)
                    sum[v] += FN(load)(row + j + v * LANES);
            sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
            for (int lane = 0; lane < LANES; lane++) total += sum[0][lane];
        }
        for (; j < cols; j++) total += row[j * src_col];
        dst[i] += total;
    }
}

/* dst[i * dst_step] = sum of src[i * src_row ... + cols) / divisor */
static void FN(mean_rows)(void *dst_, isize dst_step, const void *src_, isize src_row,
                          isize rows, isize cols, double divisor)
{
    REAL *dst = dst_;
    for (isize i = 0; i < rows; i += LANES) {
        isize n = rows - i < LANES ? rows - i : LANES;
        VEC block[LANES], total = {0};
        for (isize q = 0; q < LANES; q++) {
            const REAL *row = (const REAL *)src_ + (i + (q < n ? q : 0)) * src_row;
            VEC sum = {0};
            isize j = 0;
            for (; j + LANES <= cols; j += LANES) sum += FN(load)(row + j);
            if (j < cols) sum += FN(load_part)(row + j, cols - j);
            block[q] = sum;
        }
        FN(transpose_block)(block);
        UNROLL for (int q = 0; q < LANES; q++) total += block[q];
        total /= (REAL)divisor;
        for (isize q = 0; q < n; q++) dst[(i + q) * dst_step] = total[q];
    }
}
