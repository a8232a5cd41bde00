/* The two passes over the logits of one model; _native.py prepends arithmetic.h.
 *
 * A logit of -inf means that there is no such class. For a row without classes the sums are 0 and the top is -inf. */

INLINE REAL finite_top(double top) { return (REAL)(top == -INFINITY ? 0 : top); }

/* out: the largest logit, log Σ e^((z - top)·inv_temperature), log Σ e^(z - top), and the entropy of the classes at
 * temperature 1/inv_temperature */
static void tail_sums(const STUDENT *restrict z, int64_t classes, REAL inv_temperature, int plain, double *out) {
    REAL top = -INFINITY;
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < classes; j++) {
        const REAL z_j = LOGIT(j);
        top = z_j > top ? z_j : top;
    }
    const REAL from_top = finite_top(top);
    double mass = 0, first = 0;
    for (int64_t from = 0; from < classes; from += BLOCK) {
        REAL part = 0, part_first = 0;
#pragma omp simd reduction(+ : part, part_first)
        for (int64_t j = from; j < end_of(from, classes); j++) {
            const REAL a = (LOGIT(j) - from_top) * inv_temperature, power = exponential(a);
            part += power;
            part_first += power * floored(a);
        }
        mass += part, first += part_first;
    }
    out[0] = top;
    out[1] = mass == 0 ? 0 : log(mass);
    out[2] = plain && mass != 0 ? log(plain_mass(z, classes, from_top)) : out[1];
    out[3] = mass == 0 ? 0 : out[1] - first / mass;
}

/* inv_temperature: `stride` apart for consecutive rows (0: the same for all) */
int abkd_tail_logsumexp(const STUDENT *z, int64_t rows, int64_t classes, const double *inv_temperature, int64_t stride,
                        int plain, double *out) {
    for (int64_t i = 0; i < rows; i++)
        tail_sums(z + i * classes, classes, (REAL)inv_temperature[i * stride], plain, out + 4 * i);
    return 0;
}

/* z becomes kd_scale·t + ce_scale·u, with t and u the distributions of each row's classes at temperature
 * 1/inv_temperature and at 1; known is the output of abkd_tail_logsumexp */
int abkd_tail_gradient(STUDENT *restrict z, int64_t rows, int64_t classes, const double *inv_temperature,
                       int64_t stride, const double *known, const double *kd_scale, const double *ce_scale) {
    for (int64_t i = 0; i < rows; i++, z += classes, known += 4) {
        const REAL top = finite_top(known[0]), norm = (REAL)known[1], plain = (REAL)known[2];
        const REAL inv_t = (REAL)inv_temperature[i * stride];
        const REAL scale_t = (REAL)kd_scale[i], scale_1 = (REAL)(ce_scale ? ce_scale[i] : 0);
        if (ce_scale) {
#pragma omp simd
            for (int64_t j = 0; j < classes; j++) {
                const REAL below = LOGIT(j) - top;
                PUT(j, exponential(below * inv_t - norm) * scale_t + exponential(below - plain) * scale_1);
            }
        } else {
#pragma omp simd
            for (int64_t j = 0; j < classes; j++) PUT(j, exponential((LOGIT(j) - top) * inv_t - norm) * scale_t);
        }
    }
    return 0;
}
