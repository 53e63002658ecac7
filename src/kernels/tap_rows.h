/* Rows of pixels from the sums of taps: each pixel of row Y, column q adds what every
 * tap has for it, sums[tap][Y - down][q - across]. A pixel is a sum in a register, so
 * that nothing waits for what was stored before it; where a row of sums ends, lanes are
 * left out. */
static inline __attribute__((always_inline)) void FN(tap_vectors)(
    int channels, int whole, REAL *to, isize to_channel, const REAL *sums,
    isize channel_step, const isize *at, const FN(mask) *mask, isize taps)
{
    VEC sum[4];
    UNROLL for (int c = 0; c < channels; c++) sum[c] = FN(load)(to + c * to_channel);
    for (isize t = 0; t < taps; t++) {
        const REAL *from = sums + at[t];
        UNROLL for (int c = 0; c < channels; c++) {
            VEC value = FN(load)(from + c * channel_step);
            sum[c] = whole ? sum[c] + value : FN(add_where)(mask[t], sum[c], value);
        }
    }
    UNROLL for (int c = 0; c < channels; c++) FN(store)(to + c * to_channel, sum[c]);
}

static void FN(tap_rows)(const cnn_tap_rows *q)
{
    FN(mask) mask[CNN_TAPS_NOW];
    isize at[CNN_TAPS_NOW], down[CNN_TAPS_NOW];
    const isize step = q->channel_step, to_step = q->to_channel;

    for (isize col = 0; col < q->width; col += LANES) {
        isize taps = 0, t0 = 0, t1 = 0;
        int whole = 1;
        for (isize t = 0; t < q->taps; t++) {
            isize first = q->across[t] - col, end = first + q->cols;
            if (end <= 0 || first >= LANES) continue;
            if (first > 0 || end < LANES) whole = 0;
            mask[taps] = FN(lane_range)(first < 0 ? 0 : first, end < LANES ? end : LANES);
            down[taps] = q->down[t];
            at[taps++] = q->at[t] + col;
        }
        for (isize y = q->first; y < q->end; y++) {
            const REAL *sums = (const REAL *)q->sums + (y - q->row0) * q->cols;
            REAL *to = (REAL *)q->to + (y - q->first) * q->to_row + col;
            isize c = q->channels;
            while (t1 < taps && down[t1] <= y - q->row0) t1++;
            while (t0 < t1 && down[t0] <= y - q->row1) t0++;
            const isize *from = at + t0, count = t1 - t0;
            const FN(mask) *lanes = mask + t0;
            if (count == 0) continue;
#define SOME(n, whole)                                                            \
    for (; c >= n; c -= n, to += n * to_step, sums += n * step)                   \
        FN(tap_vectors)(n, whole, to, to_step, sums, step, from, lanes, count);
            if (whole) {
                SOME(4, 1) SOME(2, 1) SOME(1, 1)
            } else {
                SOME(4, 0) SOME(2, 0) SOME(1, 0)
            }
#undef SOME
        }
    }
}
