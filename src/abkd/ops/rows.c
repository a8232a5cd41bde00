/* The element-wise work of the op for one block of rows of two models' logits; _native.py prepends arithmetic.h.
 *
 * _native.py also prepends the macros TEACHER_BITS (bits of a teacher logit) and PARAMS (number of parameters of the
 * divergence), and replaces VALUE_AND_SLOPE by the C code of the divergence, which sets term and slope from p, q
 * (log-probabilities) and k (parameters). */
#if TEACHER_BITS == 16
typedef uint16_t TEACHER;
#elif TEACHER_BITS == 32
typedef float TEACHER;
#else
typedef double TEACHER;
#endif
#if TEACHER_BITS == 16
#define TEACHER_LOGIT(j) widen(y[j])
#else
#define TEACHER_LOGIT(j) ((REAL)y[j])
#endif

INLINE void value_and_slope(REAL p, REAL q, const REAL *k, REAL *term_of, REAL *slope_of) {
    REAL term, slope;
    VALUE_AND_SLOPE
    *term_of = term;
    *slope_of = slope;
}

/* Sums over the classes of a row. Logarithms are relative to the largest logit. */
typedef struct {
    REAL top_z, top_y, norm_q, norm_p, norm_plain; /* norms: log Σ e^(z - top), plain: at temperature 1 */
    double entropy_q, entropy_p;
    int agree;
} SUMS;

INLINE void tops(const STUDENT *z, const TEACHER *y, int64_t classes, SUMS *sums) {
    REAL top_z = -INFINITY, top_y = -INFINITY;
#pragma omp simd reduction(max : top_z, top_y)
    for (int64_t j = 0; j < classes; j++) {
        const REAL a = LOGIT(j), b = TEACHER_LOGIT(j);
        top_z = a > top_z ? a : top_z;
        top_y = b > top_y ? b : top_y;
    }
    sums->top_z = top_z, sums->top_y = top_y;
}

INLINE SUMS sums_of(const STUDENT *z, const TEACHER *y, int64_t classes, REAL inv_temperature, int plain) {
    SUMS sums;
    tops(z, y, classes, &sums);
    const REAL top_z = sums.top_z, top_y = sums.top_y;
    double mass_q = 0, mass_p = 0, first_q = 0, first_p = 0;
    REAL seen = -INFINITY; /* the teacher's largest logit where the student's is largest */
    for (int64_t from = 0; from < classes; from += BLOCK) {
        const int64_t to = end_of(from, classes);
        REAL part_q = 0, part_p = 0, part_fq = 0, part_fp = 0;
#pragma omp simd reduction(+ : part_q, part_p, part_fq, part_fp) reduction(max : seen)
        for (int64_t j = from; j < to; j++) {
            const REAL z_j = LOGIT(j), y_j = TEACHER_LOGIT(j);
            const REAL a = (z_j - top_z) * inv_temperature, b = (y_j - top_y) * inv_temperature;
            const REAL e_a = exponential(a), e_b = exponential(b), there = choose(z_j >= top_z, y_j, -INFINITY);
            part_q += e_a;
            part_p += e_b;
            part_fq += e_a * floored(a);
            part_fp += e_b * floored(b);
            seen = there > seen ? there : seen;
        }
        mass_q += part_q, mass_p += part_p, first_q += part_fq, first_p += part_fp;
    }
    const double log_q = log(mass_q), log_p = log(mass_p);
    sums.norm_q = (REAL)log_q, sums.norm_p = (REAL)log_p;
    sums.norm_plain = (REAL)(plain ? log(plain_mass(z, classes, top_z)) : log_q);
    sums.entropy_q = log_q - first_q / mass_q, sums.entropy_p = log_p - first_p / mass_p;
    sums.agree = seen == top_y;
    return sums;
}

/* The divergence; its slopes are written to a separate buffer, their sum to total. */
INLINE double value_of(const STUDENT *z, const TEACHER *y, int64_t classes, REAL inv_temperature, const SUMS *sums,
                       const double *params, REAL *restrict slopes, double *total) {
    const REAL top_z = sums->top_z, top_y = sums->top_y, norm_q = sums->norm_q, norm_p = sums->norm_p;
    REAL k[PARAMS + 1]; /* a local copy, which no write can alias */
    for (int i = 0; i < PARAMS; i++) k[i] = (REAL)params[i];
    double value = 0, slope_sum = 0;
    for (int64_t from = 0; from < classes; from += BLOCK) {
        const int64_t to = end_of(from, classes);
        REAL part = 0, part_slope = 0;
#pragma omp simd reduction(+ : part, part_slope)
        for (int64_t j = from; j < to; j++) {
            REAL term, slope;
            value_and_slope((TEACHER_LOGIT(j) - top_y) * inv_temperature - norm_p,
                            (LOGIT(j) - top_z) * inv_temperature - norm_q, k, &term, &slope);
            part += term;
            part_slope += slope;
            slopes[j] = slope;
        }
        value += part, slope_sum += part_slope;
    }
    *total = slope_sum;
    return value;
}

/* One row: with grad, z becomes the gradient of weight·(ce·CE + kd·D). out: D, CE, H(q), H(p), same top class. */
static void row(STUDENT *restrict z, const TEACHER *restrict y, int64_t classes, double weight, int64_t target,
                const double *coefficients, const double *params, REAL *restrict slopes, double *out, int grad) {
    const REAL inv_temperature = (REAL)coefficients[0];
    const int labelled = target >= 0, plain = labelled && inv_temperature != 1;
    const SUMS sums = sums_of(z, y, classes, inv_temperature, plain);
    double total;
    out[0] = value_of(z, y, classes, inv_temperature, &sums, params, slopes, &total);
    out[1] = labelled ? (double)sums.norm_plain - (double)(LOGIT(target) - sums.top_z) : 0;
    out[2] = sums.entropy_q, out[3] = sums.entropy_p, out[4] = sums.agree;
    if (!grad) return;

    const REAL kd_scale = (REAL)(weight * coefficients[2] * coefficients[0]);
    const REAL ce_scale = (REAL)(labelled ? weight * coefficients[1] : 0);
    const REAL slope_sum = (REAL)total, top_z = sums.top_z, norm_q = sums.norm_q, norm_plain = sums.norm_plain;
    const int teach = kd_scale != 0; /* with weight 0 a slope, which may be infinite, must not count */
    const REAL label = labelled ? LOGIT(target) - top_z : 0;
#define GRADIENT(j, q, other) (choose(teach, (slopes[j] - (q) * slope_sum) * kd_scale, 0) + (other) * ce_scale)
    if (plain && ce_scale != 0) {
#pragma omp simd
        for (int64_t j = 0; j < classes; j++) {
            const REAL z_j = LOGIT(j) - top_z, q = exponential(z_j * inv_temperature - norm_q);
            PUT(j, GRADIENT(j, q, exponential(z_j - norm_plain)));
        }
    } else {
#pragma omp simd
        for (int64_t j = 0; j < classes; j++) {
            const REAL z_j = LOGIT(j) - top_z, q = exponential(z_j * inv_temperature - norm_q);
            PUT(j, GRADIENT(j, q, q));
        }
    }
    if (ce_scale != 0) { /* the label's class again, with its -1 */
        const REAL q = exponential(label * inv_temperature - norm_q);
        PUT(target, GRADIENT(target, q, exponential(label - norm_plain) - (REAL)1));
    }
}

/* Rows of logits z, y [rows, classes]; target may be NULL; coefficients: 1/temperature, ce, kd; params: those of the
 * divergence; both their own stride apart for consecutive rows (0: the same for all). Returns 1 if out of memory. */
int abkd_rows(STUDENT *z, const TEACHER *y, int64_t rows, int64_t classes, const double *weight, const int64_t *target,
              const double *coefficients, int64_t coefficient_stride, const double *params, int64_t param_stride,
              double *out, int grad) {
    REAL *slopes = malloc(sizeof(REAL) * (size_t)classes);
    if (!slopes) return 1;
    for (int64_t i = 0; i < rows; i++)
        row(z + i * classes, y + i * classes, classes, weight[i], target ? target[i] : -1,
            coefficients + i * coefficient_stride, params + i * param_stride, slopes, out + 5 * i, grad);
    free(slopes);
    return 0;
}
