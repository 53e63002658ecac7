/* Depthwise convolution, channels last: lanes are channels, each with its own
 * weights. Forward (and the gradient of the input) beside the gradient of weights. */

/* y[p] = bias + sum over taps of x[p, tap] * weight[tap], for `count` pixels */
static void FN(depthwise)(void *y_, isize y_step, const void *x_, isize x_step,
                          const isize *at, isize taps, const void *weight_,
                          isize channels, isize count, const void *bias,
                          int activation)
{
    enum { SOME = 4 };
    for (isize c = 0; c < channels; c += LANES) {
        isize n = channels - c;
        const REAL *weight = (const REAL *)weight_ + c, *x = (const REAL *)x_ + c;
        REAL *y = (REAL *)y_ + c;
        VEC start = bias ? FN(load)((const REAL *)bias + c) : (VEC){0};
        for (isize p = 0; p < count; p += SOME) {
            VEC acc[SOME];
            /* beyond the last pixel: it again */
            isize to[SOME];
            UNROLL for (int i = 0; i < SOME; i++) {
                acc[i] = start;
                to[i] = p + i < count ? p + i : count - 1;
            }
            for (isize t = 0; t < taps; t++) {
                VEC w = FN(load)(weight + t * channels);
                UNROLL for (int i = 0; i < SOME; i++)
                    acc[i] += w * FN(load)(x + to[i] * x_step + at[t]);
            }
            UNROLL for (int i = 0; i < SOME; i++) {
                VEC sum = acc[i];
                if (activation == CNN_RELU)
                    sum = FN(select)((IVEC)(sum <= 0), (VEC){0}, sum);
                if (n >= LANES)
                    FN(store)(y + to[i] * y_step, sum);
                else
                    FN(store_part)(y + to[i] * y_step, sum, n);
            }
        }
    }
}

/* sums[tap] += sum over `count` pixels of grad_y[p] * x[p, tap] */
static void FN(depthwise_gradient)(void *sums_, const void *grad_y_, isize grad_y_step,
                                   const void *x_, isize x_step, const isize *at,
                                   isize taps, isize channels, isize count)
{
    enum { SOME = 9 };
    for (isize c = 0; c < channels; c += LANES) {
        REAL *sums = (REAL *)sums_ + c;
        isize n = channels - c;
        for (isize t = 0; t < taps; t += SOME) {
            const REAL *grad_y = (const REAL *)grad_y_ + c, *x[SOME];
            VEC acc[SOME];
            UNROLL for (int i = 0; i < SOME; i++) {
                x[i] = (const REAL *)x_ + c + at[t + i < taps ? t + i : t];
                acc[i] = (VEC){0};
            }
            for (isize p = 0; p < count; p++, grad_y += grad_y_step) {
                VEC error = n >= LANES ? FN(load)(grad_y) : FN(load_part)(grad_y, n);
                UNROLL for (int i = 0; i < SOME; i++)
                    acc[i] += error * FN(load)(x[i] + p * x_step);
            }
            UNROLL for (int i = 0; i < SOME; i++) {
                REAL *to = sums + (t + i) * channels;
                if (t + i >= taps) break;
                if (n >= LANES)
                    FN(store)(to, FN(load)(to) + acc[i]);
                else
                    FN(store_part)(to, FN(load_part)(to, n) + acc[i], n);
            }
        }
    }
}
