/* Softmax and cross-entropy of rows of logits, with their gradient.
 *
 * With p = softmax(y), w the label's weight and q_k = share * weight_k:
 * loss = -keep w log p_label - sum of q_k log p_k,
 * grad_y = (p (keep w + sum of q) - q - (keep w at the label)) * factor. */
static void FN(cross_entropy)(void *grad_y_, void *losses_, const void *y_,
                              const int64_t *labels, isize rows, isize classes,
                              const cnn_cross_entropy *of)
{
    REAL *losses = losses_;
    for (isize i = 0; i < rows; i++) {
        REAL *grad = (REAL *)grad_y_ + i * classes;
        const REAL *y = (const REAL *)y_ + i * classes;
        const int64_t label = labels[i];
        if (label == of->ignored) { /* not by a factor 0: it may hold NaN */
            for (isize k = 0; k < classes; k++) grad[k] = 0;
            losses[i] = 0;
            continue;
        }
        VEC best = FN(splat)(-(REAL)INFINITY), sum = {0};
        REAL largest = -(REAL)INFINITY;
        for (isize at = 0; at < classes; at += LANES) {
            isize n = classes - at;
            VEC v = FN(load_some)(y + at, n);
            if (n < LANES) /* lanes behind the end are 0 */
                for (isize lane = n; lane < LANES; lane++) v[lane] = -(REAL)INFINITY;
            best = FN(select)((IVEC)(v > best), v, best);
        }
        for (int lane = 0; lane < LANES; lane++)
            if (best[lane] > largest) largest = best[lane];
        for (isize at = 0; at < classes; at += LANES) {
            isize n = classes - at;
            VEC e = FN(exp_down)(FN(load_some)(y + at, n) - largest);
            FN(store_some)(grad + at, e, n);
            if (n < LANES)
                for (isize lane = n; lane < LANES; lane++) e[lane] = 0;
            sum += e;
        }
        /* the largest adds 1: the difference is exact, and unlike log's the symbol of
         * log1p is as old as the wheels' glibc */
        const double total = FN(sum_lanes)(sum), log_total = log1p(total - 1);
        const double weight = of->keep * (of->weights ? of->weights[label] : 1);
        const REAL scale = (REAL)((weight + of->all_shares) / total * of->factor);
        double loss = -weight * ((double)(y[label] - largest) - log_total);
        for (isize at = 0; at < classes; at += LANES) {
            isize n = classes - at;
            FN(store_some)(grad + at, FN(load_some)(grad + at, n) * scale, n);
        }
        if (of->share != 0)
            for (isize k = 0; k < classes; k++) {
                double q = of->share * (of->weights ? of->weights[k] : 1);
                loss -= q * ((double)(y[k] - largest) - log_total);
                grad[k] -= (REAL)(q * of->factor);
            }
        grad[label] -= (REAL)(weight * of->factor);
        losses[i] = (REAL)loss;
    }
}
